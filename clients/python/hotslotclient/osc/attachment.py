"""``openstack server pci``."""

import argparse
import re
import time
import uuid
from typing import Any

from openstack import exceptions as sdk_exceptions
from osc_lib import exceptions

from hotslotclient.osc import command, remedy
from hotslotclient.sdk.attachment import Attachment

_SHORT = {
    "id": "ID", "server_id": "Server ID", "alias": "Alias", "vendor_id": "Vendor ID", "product_id": "Product ID",
    "address": "Address", "inner_address": "Inner Address", "status": "Status",
}
_LONG = {**_SHORT, "inner_address_source": "Inner Address Source", "host": "Host", "is_persistent": "Persistent",
         "holder": "Holder", "created_at": "Created At", "ended_at": "Ended At", "status_reason": "Status Reason"}
_FIELDS = ("id", "server_id", "alias", "vendor_id", "product_id", "host", "address", "inner_address",
           "inner_address_source", "status", "status_reason", "is_persistent", "is_forced", "whole_group", "holder",
           "vgpu_type", "mac_address", "vlan", "physical_network", "is_trusted", "is_spoof_checked", "link_state",
           "min_tx_rate", "max_tx_rate", "request_id", "created_at", "attached_at", "updated_at", "ended_at")

_ADDRESS = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


class AttachDevice(command.Lister):
    """Attach PCI devices to a server, all of them or none"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        wanted = parser.add_mutually_exclusive_group(required=True)
        wanted.add_argument(
            "device", metavar="<alias[:number]>|<address>", nargs="*", default=[],
            help="Aliases, each with the number of devices (default 1), or addresses of devices in the host of the "
                 "server, which only administrators may name by default",
        )
        wanted.add_argument("--flavor", metavar="<flavor>", help="A flavor whose extra specs name the aliases")
        parser.add_argument(
            "--live-only", action="store_true",
            help="Attach to the running server only; it is without the devices after a power cycle",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only show the checks of the attach; change nothing",
        )
        parser.add_argument(
            "--whole-group", action="store_true", help="Attach each device with all others of its IOMMU group",
        )
        parser.add_argument(
            "--numa-policy", metavar="<policy>", choices=("required", "preferred", "legacy", "socket"),
            help="NUMA policy, instead of those of the aliases: required, preferred, legacy, socket",
        )
        parser.add_argument(
            "--vgpu-type", metavar="<type>",
            help="Type of virtual GPU that the VFs are to be of, for VFs whose driver makes virtual GPUs of them: its "
                 "id, its name or the number of the vendor",
        )
        parser.add_argument("--mac-address", metavar="<address>", help="MAC address of the VF of a NIC")
        parser.add_argument("--vlan", metavar="<tag>", type=int, help="VLAN tag of the VF of a NIC, 1 to 4094")
        parser.add_argument(
            "--physical-network", metavar="<network>", help="Require this physical_network of the VF of a NIC",
        )
        parser.add_argument(
            "--trusted", action="store_true",
            help="Require that the VF of a NIC is trusted, and let the guest change what the VF filters",
        )
        parser.add_argument(
            "--spoof-check", metavar="<on|off>", choices=("on", "off"),
            help="Whether the VF of a NIC drops frames with another source address than its own: on, off",
        )
        parser.add_argument(
            "--link-state", metavar="<state>", choices=("auto", "enable", "disable"),
            help="Link that the guest sees of the VF of a NIC: auto, enable, disable",
        )
        parser.add_argument(
            "--min-rate", metavar="<Mbit/s>", type=int,
            help="Bandwidth that is guaranteed to the VF of a NIC, in Mbit/s; 0 is none",
        )
        parser.add_argument(
            "--max-rate", metavar="<Mbit/s>", type=int,
            help="Bandwidth that the VF of a NIC cannot exceed, in Mbit/s; 0 is no limit",
        )
        parser.add_argument(
            "--wait", action="store_true", help="Wait until the guest has confirmed the addresses of the devices",
        )
        parser.add_argument(
            "--timeout", metavar="<seconds>", type=command.seconds, default=60.0,
            help="How long to wait for the guest, default=60",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[list[Any]]]:
        """Runs the command."""
        server = self.client.find_server(parsed_args.server)
        alias = ",".join(name for name in parsed_args.device if not _ADDRESS.fullmatch(name)) or None
        addresses = [name.lower() for name in parsed_args.device if _ADDRESS.fullmatch(name)]
        options = command.given(
            flavor=parsed_args.flavor, whole_group=parsed_args.whole_group, numa_policy=parsed_args.numa_policy,
            vgpu_type=parsed_args.vgpu_type, mac_address=parsed_args.mac_address, vlan=parsed_args.vlan,
            physical_network=parsed_args.physical_network, trusted=parsed_args.trusted,
            link_state=parsed_args.link_state, min_tx_rate=parsed_args.min_rate, max_tx_rate=parsed_args.max_rate,
        )
        if addresses:
            options["addresses"] = addresses
        if parsed_args.spoof_check is not None:
            options["spoof_check"] = parsed_args.spoof_check == "on"
        if parsed_args.live_only:
            options["persistent"] = False
        if parsed_args.dry_run:
            return self._verdict(self.client.try_attach(server, alias, **options))
        attached = self.client.attach(server, alias, **options)
        if parsed_args.wait:
            end = time.monotonic() + parsed_args.timeout
            attached = [
                self.client.wait_for_attachment(server, one.id, max(end - time.monotonic(), 0)) for one in attached
            ]
        return command.table(attached, _SHORT)

    def _verdict(self, verdict: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
        keys = {"check": "Check", "device": "Device", "result": "Result", "message": "Message", "cure": "What to do"}
        checks = [[check.get(key) for key in keys] for check in verdict["checks"]]
        if not verdict["would_attach"]:
            failed = [check for check in verdict["checks"] if check["result"] == "fail"]
            reasons = "; ".join(f"{check['check']}: {check['message'] or 'failed'}" for check in failed)
            cures = "; ".join(sorted({check["cure"] for check in failed if check["cure"]}))
            raise exceptions.CommandError(
                f"nothing would be attached: {reasons}{'; ' if cures else ''}{remedy.by_commands(cures)}"
            )
        return list(keys.values()), checks


class DetachDevice(command.Command):
    """Detach PCI devices from a server"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        parser.add_argument(
            "attachment", metavar="<attachment>|<alias>|<address>", nargs="+",
            help="Attachments (ID), or PCI devices of the server by their alias, or by their address in the host or in "
                 "the guest",
        )
        parser.add_argument("--wait", action="store_true", help="Wait until the guest has released the devices")
        parser.add_argument(
            "--force", action="store_true",
            help="Override a policy against detaching, and take the device out of the definition even if the guest "
                 "refuses; a running guest keeps the device until it releases it",
        )
        parser.add_argument(
            "--timeout", metavar="<seconds>", type=command.seconds,
            help="How long the guest is asked to release a device; by default what the service is configured to",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Runs the command."""
        server = self.client.find_server(parsed_args.server)
        failed = []
        for name in parsed_args.attachment:
            try:
                attachment = name if _is_uuid(name) else self._named(server, name, parsed_args.server)
                self.client.detach(
                    server, attachment, wait=parsed_args.wait, timeout=parsed_args.timeout, force=parsed_args.force
                )
            except sdk_exceptions.HttpException as error:
                failed.append(command.reason(error))
            except exceptions.CommandError as error:
                failed.append(str(error))
        if failed:
            for message in failed:
                self.log.error(message)
            raise exceptions.CommandError(
                f"{len(failed)} of {len(parsed_args.attachment)} PCI devices were not detached"
            )


    def _named(self, server: str, name: str, shown: str) -> str:
        own = list(self.client.attachments(server))
        found = [one for one in own if one.alias == name]
        if _ADDRESS.fullmatch(name):
            # Where an address of the host is also one in the guest, that of the host has precedence.
            found = [one for one in own if one.address == name.lower()]
            found = found or [one for one in own if one.inner_address == name.lower()]
        if len(found) == 1:
            return str(found[0].id)
        if found:
            choices = ", ".join(f"{one.id} ({one.inner_address or one.address})" for one in found)
            raise exceptions.CommandError(
                f"server {shown} has several PCI devices of alias {name}: {choices}; name the ID"
            )
        raise exceptions.CommandError(
            f"server {shown} has no PCI device {name}; `openstack server pci list {shown}` lists those that it has"
        )


class ListAttachment(command.Lister):
    """List the PCI devices of a server, or of all servers that you may use"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", nargs="?", help="Server (name or ID)")
        parser.add_argument("--alias", metavar="<alias>", help="Only devices that were requested by this alias")
        parser.add_argument("--status", metavar="<status>", help="Only attachments with this status, such as detaching")
        parser.add_argument("--ended", action="store_true", help="List the attachments that have ended")
        parser.add_argument("--long", action="store_true", help="List additional fields")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[list[Any]]]:
        """Runs the command."""
        query = command.given(alias=parsed_args.alias, status=parsed_args.status)
        found = self.client.attachments(parsed_args.server, ended=parsed_args.ended, **query)
        return command.table(found, _LONG if parsed_args.long else _SHORT)


class ShowAttachment(command.ShowOne):
    """Show a PCI device of a server"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        parser.add_argument("server", metavar="<server>", help="Server (name or ID)")
        parser.add_argument("attachment", metavar="<attachment>", help="Attachment (ID)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        """Runs the command."""
        found: Attachment = self.client.get_attachment(parsed_args.server, parsed_args.attachment)
        return command.fields(found, _FIELDS)
