"""The plugin of OpenStackClient."""

import argparse
from typing import Any

from osc_lib import utils

from hotslotclient import sdk

API_NAME = "pci"
API_VERSION_OPTION = "os_pci_api_version"
API_VERSIONS = ("2",)
DEFAULT_API_VERSION = "2"


def make_client(instance: Any) -> sdk.Proxy:
    """Returns ``conn.pci`` of the connection of a command."""
    sdk.register(instance.sdk_connection)
    client: sdk.Proxy = instance.sdk_connection.pci
    return client


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the global option."""
    parser.add_argument(
        "--os-pci-api-version",
        metavar="<pci-api-version>",
        default=utils.env("OS_PCI_API_VERSION"),
        help=f"Version of hotslot's API, default={DEFAULT_API_VERSION} (Env: OS_PCI_API_VERSION)",
    )
    return parser
