"""What the commands have in common."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from openstack import exceptions as sdk_exceptions
from openstack import resource
from osc_lib import exceptions
from osc_lib.cli import format_columns
from osc_lib.command import command

from hotslotclient.osc import remedy
from hotslotclient.sdk import Proxy
from hotslotclient.sdk.hypervisor import Hypervisor

#: The attributes of a resource that a command shows, with their titles.
Columns = dict[str, str]

_ABSENT = (
    "the catalog has no service of the type hotslot for this region and interface; an administrator adds it with "
    "`openstack service create --name hotslot hotslot` and `openstack endpoint create`, or set "
    "OS_HOTSLOT_ENDPOINT_OVERRIDE to its address"
)


def reason(error: sdk_exceptions.SDKException) -> str:
    """Returns what the service says of a refusal, and what to do next."""
    if isinstance(error, sdk_exceptions.HttpException) and error.details:
        return f"{remedy.by_commands(error.details)} (HTTP {error.status_code})"
    if isinstance(error, sdk_exceptions.ServiceDisabledException):
        return _ABSENT
    return str(error)


class Command(command.Command):
    """A command that ends with the message of the service when the service refuses."""

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Runs the command."""
        try:
            return super().run(parsed_args)
        except sdk_exceptions.SDKException as error:
            raise exceptions.CommandError(reason(error)) from error

    @property
    def client(self) -> Proxy:
        """The requests to the service."""
        client: Proxy = self.app.client_manager.pci  # type: ignore[attr-defined]
        return client


class Lister(Command, command.Lister):
    """A command that shows a list."""


class ShowOne(Command, command.ShowOne):
    """A command that shows one item."""


def hosts(client: Proxy, name: str | None) -> list[Hypervisor]:
    """Returns the host with a name or ID; without a name all hosts."""
    found = [host for host in client.hypervisors() if name is None or name in (host.name, host.id)]
    if name is not None and not found:
        raise exceptions.CommandError(f"hypervisor {name} not found; `openstack hypervisor pci stats` lists all")
    return found


def cell(value: Any) -> Any:
    """Returns a value as the formats of the command line need it."""
    if isinstance(value, dict):
        return format_columns.DictColumn(value)
    return value


def row(item: resource.Resource, shown: Columns) -> list[Any]:
    """Returns the values of an item in the order of the columns."""
    return [cell(getattr(item, attribute)) for attribute in shown]


def table(items: Iterable[resource.Resource], shown: Columns) -> tuple[list[str], list[list[Any]]]:
    """Returns what a :class:`Lister` shows."""
    return list(shown.values()), [row(item, shown) for item in items]


def fields(item: resource.Resource, shown: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Returns what a :class:`ShowOne` shows: the attributes under their own names."""
    return list(shown), row(item, dict.fromkeys(shown, ""))


def seconds(text: str) -> float:
    """Reads a number of seconds above 0 and up to a day."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0.001 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: expected seconds, from 0.001 to 86400")
    return number


def given(**values: Any) -> dict[str, Any]:
    """Returns the options that were given."""
    return {name: value for name, value in values.items() if value is not None and value is not False}

