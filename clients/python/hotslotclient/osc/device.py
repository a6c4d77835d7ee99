"""``openstack pci device``."""

import argparse
from typing import Any

from osc_lib.cli import parseractions

from hotslotclient.osc import command

_SHORT = {
    "id": "ID", "host": "Host", "address": "Address", "vendor_id": "Vendor ID", "product_id": "Product ID",
    "dev_type": "Type", "status": "Status", "server_id": "Server ID",
}
_LONG = {**_SHORT, "uuid": "UUID", "numa_node": "NUMA Node", "label": "Label", "owner": "Owner",
         "extra_info": "Extra Info"}
_FIELDS = ("id", "uuid", "host", "address", "dev_id", "vendor_id", "product_id", "dev_type", "status", "server_id",
           "owner", "numa_node", "parent_addr", "label", "extra_info", "request_id", "created_at", "updated_at",
           "gone_at", "used_at")


class ListDevice(command.Lister):
    """List the PCI devices that can be assigned"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--host", metavar="<host>", help="Only devices of this host")
        parser.add_argument("--vendor-id", metavar="<id>", help="Only devices with this vendor id, such as 8086")
        parser.add_argument("--product-id", metavar="<id>", help="Only devices with this product id, such as 10ca")
        parser.add_argument("--type", metavar="<type>", help="Only devices of this type, such as type-VF or type-PF")
        parser.add_argument("--status", metavar="<status>", help="Only devices with this status, such as available")
        parser.add_argument("--address", metavar="<address>", help="Only devices at this address, such as 0000:3b:10.0")
        parser.add_argument("--numa-node", metavar="<node>", type=int, help="Only devices of this NUMA node")
        parser.add_argument("--server", metavar="<server>", help="Only devices of this server (name or ID)")
        parser.add_argument(
            "--property", metavar="<key=value>", action=parseractions.KeyValueAction,
            help="Only devices whose extra info has this (repeat option for several)",
        )
        parser.add_argument("--long", action="store_true", help="List additional fields")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[list[Any]]]:
        """Runs the command."""
        query = command.given(
            host=parsed_args.host, vendor_id=parsed_args.vendor_id, product_id=parsed_args.product_id,
            dev_type=parsed_args.type, status=parsed_args.status, address=parsed_args.address,
            extra_info=parsed_args.property,
            server_id=parsed_args.server and self.client.find_server(parsed_args.server),
        )
        if parsed_args.numa_node is not None:
            query["numa_node"] = parsed_args.numa_node
        found = list(self.client.devices(**query))
        if parsed_args.host is not None and not found:
            command.hosts(self.client, parsed_args.host)
        return command.table(found, _LONG if parsed_args.long else _SHORT)


class ShowDevice(command.ShowOne):
    """Show a PCI device that can be assigned"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("device", metavar="<device>", help="Device (ID, UUID, or address in its host)")
        parser.add_argument("--host", metavar="<host>", help="The host of the address")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        """Runs the command."""
        return command.fields(self.client.find_device(parsed_args.device, parsed_args.host), _FIELDS)


class SetDevice(command.Command):
    """Record that a PCI device was cleaned"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("device", metavar="<device>", help="Device (ID, UUID, or address in its host)")
        parser.add_argument("--host", metavar="<host>", help="The host of the address")
        parser.add_argument(
            "--cleaned", action="store_true", required=True,
            help="A one_time_use device was cleaned after its use, and can be assigned again",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Runs the command."""
        device = self.client.find_device(parsed_args.device, parsed_args.host)
        self.client.mark_device_cleaned(device.id)
