"""``openstack pci alias``, ``openstack pci whitelist`` and ``openstack pci extra info``."""

import argparse
import uuid
from typing import Any, ClassVar

from openstack import exceptions as sdk_exceptions
from osc_lib import exceptions
from osc_lib.cli import format_columns, parseractions

from hotslotclient.osc import command
from hotslotclient.sdk.rule import Kind, Rule

_FIELDS = ("id", "position", "source", "place", "is_read_only", "entry", "problem", "created_at", "updated_at")


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


class _Of:
    """A kind of rules."""

    kind: ClassVar[Kind]
    #: What the help calls a rule of the kind.
    noun: ClassVar[str]
    #: The keys of an entry that have options, by the names of the options.
    keys: ClassVar[dict[str, str]]
    #: The keys of an entry that have columns of a list.
    columns: ClassVar[tuple[str, ...]]

    def add_entry(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options for the keys of an entry."""
        for option, key in self.keys.items():
            parser.add_argument(f"--{option}", metavar=f"<{option}>", help=f"{key} of the entry, as in nova.conf")
        parser.add_argument(
            "--property", metavar="<key=value>", action=parseractions.KeyValueAction, default={},
            help="Another key of the entry, as in nova.conf (repeat option for several)",
        )

    def entry(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Returns the keys of the entry that were given."""
        options = {key: getattr(parsed_args, option.replace("-", "_")) for option, key in self.keys.items()}
        return {**command.given(**options), **parsed_args.property}


class _Alias(_Of):
    kind: ClassVar[Kind] = "alias"
    noun = "alias"
    keys: ClassVar[dict[str, str]] = {
        "vendor-id": "vendor_id", "product-id": "product_id", "type": "device_type", "numa-policy": "numa_policy",
    }
    columns = ("name", "vendor_id", "product_id", "device_type", "numa_policy")


class _Whitelist(_Of):
    kind: ClassVar[Kind] = "whitelist"
    noun = "whitelist entry"
    keys: ClassVar[dict[str, str]] = {
        "vendor-id": "vendor_id", "product-id": "product_id", "address": "address", "devname": "devname",
        "physical-network": "physical_network",
    }
    columns = ("vendor_id", "product_id", "address", "devname", "physical_network")


class _ExtraInfo(_Of):
    kind: ClassVar[Kind] = "extra_info"
    noun = "extra info entry"
    keys: ClassVar[dict[str, str]] = {}
    columns = ("match", "values")

    def add_entry(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options for the keys of an entry."""
        parser.add_argument(
            "--match", metavar="<key=value>", action=parseractions.KeyValueAction,
            help="A condition for the devices, such as address=0000:3b:00.1 (repeat option for several)",
        )
        parser.add_argument(
            "--property", metavar="<key=value>", action=parseractions.KeyValueAction,
            help="What the extra info of the devices gets (repeat option for several)",
        )

    def entry(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Returns the keys of the entry that were given."""
        return command.given(match=parsed_args.match, values=parsed_args.property)


class _Command(command.Command, _Of):
    def find(self, name: str) -> str:
        """Returns the id of the rule with this id or, for an alias, with this name."""
        if _is_uuid(name):
            return name
        found = [rule for rule in self.client.rules(self.kind) if rule.entry.get("name") == name]
        if not found:
            raise exceptions.CommandError(
                f"{self.noun} {name} not found; `openstack pci {self.kind.replace('_', ' ')} list` lists all"
            )
        if len(found) > 1:
            choices = ", ".join(str(rule.id) for rule in found)
            raise exceptions.CommandError(f"{len(found)} entries have the name {name}; name the ID of one: {choices}")
        return str(found[0].id)

    def add_rule(self, parser: argparse.ArgumentParser, **options: Any) -> None:
        """Adds the argument that names a rule."""
        by = "name or ID" if self.kind == "alias" else "ID"
        parser.add_argument("rule", metavar="<id>", help=f"The {self.noun} ({by})", **options)

    def add_force(self, parser: argparse.ArgumentParser) -> None:
        """Adds the option for rules that devices in use depend on."""
        parser.add_argument("--force", action="store_true", help="Do it even if devices in use depend on the entry")


def _shown(rule: Rule) -> tuple[list[str], list[Any]]:
    return command.fields(rule, _FIELDS)


class _List(command.Lister, _Of):
    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[list[Any]]]:  # noqa: ARG002
        """Runs the command."""
        titles = [name.replace("_", " ").title().replace("Id", "ID").replace("Numa", "NUMA") for name in self.columns]
        rows = [
            [rule.id, *(command.cell(rule.entry.get(key)) for key in self.columns),
             format_columns.DictColumn({key: value for key, value in rule.entry.items() if key not in self.columns}),
             rule.source, rule.problem]
            for rule in self.client.rules(self.kind)
        ]
        return ["ID", *titles, "Properties", "Source", "Problem"], rows


class _Show(_Command, command.ShowOne):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        self.add_rule(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        """Runs the command."""
        return _shown(self.client.get_rule(self.kind, self.find(parsed_args.rule)))


class _Create(_Command, command.ShowOne):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        if self.kind == "alias":
            parser.add_argument("name", metavar="<name>", help="The name; several entries of a name are alternatives")
        self.add_entry(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        """Runs the command."""
        entry = self.entry(parsed_args)
        if self.kind == "alias":
            entry["name"] = parsed_args.name
        return _shown(self.client.create_rule(self.kind, entry))


class _Set(_Command, command.ShowOne):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        self.add_rule(parser)
        self.add_entry(parser)
        parser.add_argument(
            "--unset", metavar="<key>", action="append", default=[],
            help="Remove this key from the entry (repeat option for several)",
        )
        self.add_force(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[list[str], list[Any]]:
        """Runs the command."""
        rule = self.client.get_rule(self.kind, self.find(parsed_args.rule))
        entry = {key: value for key, value in rule.entry.items() if key not in parsed_args.unset}
        entry |= self.entry(parsed_args)
        return _shown(self.client.replace_rule(self.kind, rule.id, entry, force=parsed_args.force))


class _Delete(_Command):
    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Returns the parser of the command line."""
        parser = super().get_parser(prog_name)
        self.add_rule(parser, nargs="+")
        self.add_force(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Runs the command."""
        failed = 0
        for name in parsed_args.rule:
            try:
                self.client.delete_rule(self.kind, self.find(name), force=parsed_args.force)
            except sdk_exceptions.SDKException as error:
                failed += 1
                self.log.error("%s was not deleted: %s", name, command.reason(error))
            except exceptions.CommandError as error:
                failed += 1
                self.log.error(str(error))
        if failed:
            raise exceptions.CommandError(f"{failed} of {len(parsed_args.rule)} entries were not deleted")


class ListAlias(_Alias, _List):
    """List the aliases, by which PCI devices are requested"""


class ShowAlias(_Alias, _Show):
    """Show an alias"""


class CreateAlias(_Alias, _Create):
    """Create an alias, by which PCI devices are requested"""


class SetAlias(_Alias, _Set):
    """Change an alias"""


class DeleteAlias(_Alias, _Delete):
    """Delete aliases"""


class ListWhitelist(_Whitelist, _List):
    """List the whitelist, which selects the PCI devices that can be assigned"""


class ShowWhitelist(_Whitelist, _Show):
    """Show an entry of the whitelist"""


class CreateWhitelist(_Whitelist, _Create):
    """Create an entry of the whitelist, which selects the PCI devices that can be assigned"""


class SetWhitelist(_Whitelist, _Set):
    """Change an entry of the whitelist"""


class DeleteWhitelist(_Whitelist, _Delete):
    """Delete entries of the whitelist"""


class ListExtraInfo(_ExtraInfo, _List):
    """List the entries that add facts to PCI devices"""


class ShowExtraInfo(_ExtraInfo, _Show):
    """Show an entry that adds facts to PCI devices"""


class CreateExtraInfo(_ExtraInfo, _Create):
    """Create an entry that adds facts to PCI devices, which hosts do not report"""


class SetExtraInfo(_ExtraInfo, _Set):
    """Change an entry that adds facts to PCI devices"""


class DeleteExtraInfo(_ExtraInfo, _Delete):
    """Delete entries that add facts to PCI devices"""
