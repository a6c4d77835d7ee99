"""``openstack hypervisor pci stats``."""

import argparse
from typing import Any

from osc_lib.cli import format_columns

from hotslotclient.osc import command

_COLUMNS = {"vendor_id": "Vendor ID", "product_id": "Product ID", "numa_node": "NUMA Node", "count": "Free"}


class ListStats(command.Lister):
    """List how many PCI devices of each kind are free"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("hypervisor", metavar="<hypervisor>", nargs="?", help="Only this host (name or ID)")
        parser.add_argument("--vendor-id", metavar="<id>", help="Only devices with this vendor id, such as 8086")
        parser.add_argument("--product-id", metavar="<id>", help="Only devices with this product id, such as 10ca")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[list[Any]]]:
        """Runs the command."""
        hosts = command.hosts(self.client, parsed_args.hypervisor)
        wanted = command.given(vendor_id=parsed_args.vendor_id, product_id=parsed_args.product_id)
        for host in hosts:
            if host.state != "up":
                self.log.warning("%s is %s, so its numbers may be old: %s", host.name, host.state, host.state_reason)
        rows = [
            [host.name, *(stat[key] for key in _COLUMNS), format_columns.DictColumn(stat["extra_info"])]
            for host in hosts for stat in host.pci_stats
            if all(stat[key] == value.lower() for key, value in wanted.items())
        ]
        return ["Host", *_COLUMNS.values(), "Extra Info"], rows
