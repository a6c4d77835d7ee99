"""The service names REST routes and JSON fields in its messages. Here they become commands and options."""

import re

_COMMANDS = {
    "GET servers": "`openstack server list`",
    "GET os-pci/detail": "`openstack pci device list --long`",
    "GET os-pci_attachments": "`openstack server pci list`",
    "GET os-pci": "`openstack pci device list`",
    "GET os-hypervisors": "`openstack hypervisor pci stats`",
    "with force": "with --force",
    "add ?force=true": "add --force",
    "another numa_policy": "another --numa-policy",
    '"whole_group": true': "--whole-group",
    "whole_group": "--whole-group",
    "pci_passthrough:alias:": "alias:",
    "vlan, mac_address,": "--vlan, --mac-address,",
    "mac_address, vlan, physical_network,": "--mac-address, --vlan, --physical-network,",
    "trusted,": "--trusted,",
    "vgpu_type": "--vgpu-type",
    "spoof_check": "--spoof-check",
    "link_state": "--link-state",
    "min_tx_rate": "--min-rate",
    "max_tx_rate": "--max-rate",
}
_PATTERN = re.compile("|".join(rf"(?<!\w){re.escape(text)}(?![-/\w])" for text in _COMMANDS))


def by_commands(message: str) -> str:
    """Returns a message of the service with commands and options in place of routes and fields."""
    return _PATTERN.sub(lambda found: _COMMANDS[found[0]], message)
