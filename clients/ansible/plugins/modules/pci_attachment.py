#!/usr/bin/python
"""The module hotslot.pci.pci_attachment."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pci_attachment
short_description: Attach PCI devices to a server, or detach them
description:
  - Makes a server have a number of PCI devices that an alias names, through the service hotslot. The server may be
    running.
  - The service chooses the devices. Either all devices that are missing are attached, or none.
  - The service cannot change a device that is attached. When the server has a device of the alias that differs from the
    options O(persistent), O(whole_group), O(vgpu_type), O(vlan), O(physical_network), O(trusted), O(spoof_check),
    O(link_state), O(min_tx_rate) and O(max_tx_rate), and therefore too few devices that fit, the module fails and names
    the difference.
options:
  state:
    description: Whether the server has the devices.
    choices: [present, absent]
    default: present
    type: str
  server:
    description: The name or id of the server.
    required: true
    type: str
  alias:
    description:
      - The alias by which the devices are requested.
      - With O(state=absent), all devices that were requested by this alias are detached.
    type: str
  count:
    description: The number of devices that the server has at least with O(state=present).
    default: 1
    type: int
  address:
    description:
      - The address of a device in the host of the server, such as C(0000:3b:00.0), in place of O(alias).
      - O(count) must be 1.
      - By default only administrators may name addresses of hosts.
    type: str
  attachment:
    description: The whole id of the attachment to end, for O(state=absent) in place of O(alias) and O(address).
    type: str
  persistent:
    description:
      - Whether the definition of the server gets the devices too, so that it has them after a power cycle.
      - Without this option it gets them, and devices that it has already are not compared.
    type: bool
  whole_group:
    description: Whether each device is attached with all others of its IOMMU group.
    default: false
    type: bool
  numa_policy:
    description:
      - The NUMA policy by which missing devices are chosen, in place of that of the alias.
      - The service does not record it, so devices that the server has already are not compared.
    choices: [required, preferred, legacy, socket]
    type: str
  vgpu_type:
    description:
      - The type of virtual GPU that the VFs are to be of, for VFs whose driver makes virtual GPUs of them.
      - It is the id of the type, such as C(nvidia-1155), because the service records the id. C(hotslot device show)
        lists the types.
    type: str
  mac_address:
    description:
      - The MAC address of the VF of a NIC. O(count) must be 1.
      - A device of the alias with another address does not count.
    type: str
  vlan:
    description: The VLAN tag of the VF of a NIC, 1 to 4094.
    type: int
  physical_network:
    description: The physical_network that the VF of a NIC must have.
    type: str
  trusted:
    description: Whether the VF of a NIC must be trusted. Its guest may then change what the VF filters.
    default: false
    type: bool
  spoof_check:
    description:
      - Whether the VF of a NIC drops frames with another source address than its own.
      - Without this option the VF keeps the setting that it has, and devices that the server has already are not
        compared. The same is true of O(link_state), O(min_tx_rate) and O(max_tx_rate).
    type: bool
  link_state:
    description: The link that the guest sees of the VF of a NIC.
    choices: [auto, enable, disable]
    type: str
  min_tx_rate:
    description: The bandwidth that is guaranteed to the VF of a NIC, in Mbit/s. 0 is none.
    type: int
  max_tx_rate:
    description: The bandwidth that the VF of a NIC cannot exceed, in Mbit/s. 0 is no limit.
    type: int
  wait:
    description:
      - Whether to wait with O(state=absent) until the guest has released the devices.
      - Without waiting, a device that is being detached already changes nothing.
    default: true
    type: bool
  timeout:
    description:
      - How long the guest is asked to release a device, in seconds. By default it is what the service is configured to.
    type: int
  force:
    description:
      - Whether to override a policy against detaching. A running guest keeps a device until it releases it.
    default: false
    type: bool
  socket:
    description:
      - The path of the unix socket of a service on the machine that runs the module, usually
        C(/run/hotslot/api.sock). It needs no C(clouds.yaml) and no token.
    type: path
  cloud:
    description:
      - The name of the cloud in C(clouds.yaml). Without it, O(auth) or the variables C(OS_*) are used.
    type: str
  auth:
    description:
      - The settings of O(auth_type). With them, neither C(clouds.yaml) nor the variables C(OS_*) are read.
      - With C(auth_type=admin_token) they are C(endpoint), the address of the service, and C(token), a token that
        C(hotslot token create) has made.
    type: dict
  auth_type:
    description: The name of the authentication plugin.
    type: str
  region_name:
    description: The region of the service in the catalog.
    type: str
  interface:
    description: The interface of the service in the catalog.
    choices: [public, internal, admin]
    type: str
  validate_certs:
    description: Whether certificates are verified.
    type: bool
  ca_cert:
    description: The PEM file of the authority that signed the certificates.
    type: path
attributes:
  check_mode:
    description: The service checks the attach, and attaches nothing.
    support: full
requirements:
  - python-hotslotclient
author:
  - the hotslot developers
"""

EXAMPLES = r"""
- name: web1 has two VFs
  hotslot.pci.pci_attachment:
    cloud: mycloud
    server: web1
    alias: vf
    count: 2

- name: web1 has no VFs
  hotslot.pci.pci_attachment:
    cloud: mycloud
    server: web1
    alias: vf
    state: absent

- name: vm1 has a GPU, through the service on its own host
  hotslot.pci.pci_attachment:
    socket: /run/hotslot/api.sock
    server: vm1
    alias: gpu

- name: web1 has a VF that sends at most 1 Gbit/s
  hotslot.pci.pci_attachment:
    cloud: mycloud
    server: web1
    alias: nic
    vlan: 100
    max_tx_rate: 1000

- name: vm2 has a virtual GPU
  hotslot.pci.pci_attachment:
    cloud: mycloud
    server: vm2
    alias: vgpu
    vgpu_type: nvidia-1155

- name: db1 has a disk, by a token of hotslot
  hotslot.pci.pci_attachment:
    auth_type: admin_token
    auth:
      endpoint: https://node1.example.org:9774
      token: "{{ hotslot_token }}"
    ca_cert: /etc/hotslot/ca.pem
    server: db1
    alias: nvme
"""

RETURN = r"""
attachments:
  description:
    - The devices of the alias or address that the server has, or those that were detached or are being detached.
    - In check mode with O(state=present), those that it has already.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The id of the attachment.
      type: str
    inner_address:
      description: The address that the guest sees, such as C(0000:06:00.0).
      type: str
    inner_address_source:
      description: V(computed) from the topology of the guest, or V(verified) by the guest.
      type: str
    address:
      description: The address in the host. None for callers who may not see hosts.
      type: str
    status:
      description: The status of the attachment.
      type: str
would_attach:
  description: The devices that an attach would take, each with its vendor_id and product_id.
  returned: in check mode, when devices are missing
  type: list
  elements: dict
checks:
  description: The checks of the attach, each with its result, message and cure.
  returned: in check mode, when devices are missing
  type: list
  elements: dict
"""

import re  # noqa: E402
import uuid  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import (  # type: ignore[import-untyped]  # noqa: E402
    AnsibleModule,
    missing_required_lib,
)

try:
    from hotslotclient import sdk
    from keystoneauth1.exceptions import ClientException
    from openstack import exceptions
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

#: The options of the connection: our names, and those of openstack.connect.
CONNECTION = {
    "socket": "socket", "cloud": "cloud", "auth": "auth", "auth_type": "auth_type", "region_name": "region_name",
    "interface": "interface", "validate_certs": "verify", "ca_cert": "cacert",
}
#: The options of an attach that are sent to the service when they are given.
DEVICE = (
    "persistent", "whole_group", "numa_policy", "vgpu_type", "mac_address", "vlan", "physical_network", "trusted",
    "spoof_check", "link_state", "min_tx_rate", "max_tx_rate",
)
#: The options whose value false is the same as no option. The others have no default, so false is a wish.
FLAGS = ("whole_group", "trusted")
#: The options that an attachment shows, and its attributes.
COMPARED = {
    "persistent": "is_persistent", "whole_group": "whole_group", "vgpu_type": "vgpu_type", "vlan": "vlan",
    "physical_network": "physical_network", "trusted": "is_trusted", "spoof_check": "is_spoof_checked",
    "link_state": "link_state", "min_tx_rate": "min_tx_rate", "max_tx_rate": "max_tx_rate",
}
#: The id of a type of virtual GPU: the vendor and the vendor's number.
VGPU_TYPE = re.compile(r"[a-z]+-[0-9]+")


def connected(params: dict[str, Any]) -> sdk.Proxy:
    """Returns the service of the cloud that the options name."""
    options = {name: params[ours] for ours, name in CONNECTION.items() if params[ours] is not None}
    if "auth" in options:
        # The first cloud of clouds.yaml would be added to it.
        options |= {"load_yaml_config": False, "load_envvars": False}
    try:
        return sdk.connect(**options).pci
    except TypeError as error:
        raise exceptions.ConfigException(f"auth does not fit auth_type: {error}") from error


def shown(attachment: Any) -> dict[str, Any]:
    """Returns an attachment as a result of the module."""
    row: dict[str, Any] = attachment.to_dict(computed=False, original_names=False)
    return row


def given(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of an attach that are to be sent."""
    def is_given(name: str) -> bool:
        return params[name] is not None and not (name in FLAGS and params[name] is False)

    return {name: params[name] for name in DEVICE if is_given(name)}


def is_named(attachment: Any, params: dict[str, Any]) -> bool:
    """Whether an attachment is of the device that the options name by its address, or of their alias."""
    if attachment.holder:
        return False
    if params["address"] is not None:
        return bool((attachment.address or "").lower() == params["address"].lower())
    return bool(attachment.alias == params["alias"])


def differences(attachment: Any, options: dict[str, Any]) -> str:
    """Returns where a device that the server has differs from the options; an empty text when it fits."""
    found = []
    for name, attribute in COMPARED.items():
        has = getattr(attachment, attribute)
        if name in options and has != options[name]:
            found.append(f"{name} is {'not set' if has is None else has}, not {options[name]}")
    return ", ".join(found)


def named(params: dict[str, Any]) -> str:
    """Returns the alias or the address of the devices for a message."""
    return f"alias {params['alias']}" if params["alias"] is not None else f"address {params['address']}"


def attachments(module: AnsibleModule, pci: sdk.Proxy, server: str) -> list[Any]:
    """Returns the attachments of the server. Fails when the address that is given cannot be found among them."""
    found = list(pci.attachments(server))
    address = module.params["address"]
    if address is not None and any(one.address is None for one in found):
        module.fail_json(
            msg=f"you may not see the addresses of this server's devices, so whether one is {address} is not known; "
                "give alias, or attachment with state=absent, in place of address"
        )
    return found


def present(module: AnsibleModule, pci: sdk.Proxy, server: str) -> dict[str, Any]:
    """Attaches the devices that are missing."""
    params = module.params
    mac = params["mac_address"]
    held = [
        one for one in attachments(module, pci, server)
        if one.status in ("attaching", "attached") and is_named(one, params)
        and (mac is None or (one.mac_address or "").lower() == mac.lower())
    ]
    options = given(params)
    others = {one.id: differs for one in held if (differs := differences(one, options))}
    missing = params["count"] - (len(held) - len(others))
    if missing <= 0:
        return {"changed": False, "attachments": [shown(one) for one in held]}
    for attachment, differs in others.items():
        module.fail_json(
            msg=f"the server has a device of {named(params)} that differs: {differs}; a device that is attached "
                f"cannot be changed: detach it first, with state=absent and attachment={attachment}, or omit the "
                "options in which it differs"
        )
    wanted = None
    if params["alias"] is not None:
        wanted = f"{params['alias']}:{missing}"
    else:
        options["addresses"] = [params["address"].lower()]
    if module.check_mode:
        verdict = pci.try_attach(server, wanted, **options)
        if not verdict["would_attach"]:
            failed = [check for check in verdict["checks"] if check["result"] == "fail"]
            reasons = "; ".join(f"{check['check']}: {check['message'] or 'failed'}" for check in failed)
            module.fail_json(msg=f"nothing would be attached: {reasons}", checks=verdict["checks"])
        return {
            "changed": True, "attachments": [shown(one) for one in held],
            "would_attach": verdict["pci_devices"], "checks": verdict["checks"],
        }
    held += pci.attach(server, wanted, **options)
    return {"changed": True, "attachments": [shown(one) for one in held]}


def absent(module: AnsibleModule, pci: sdk.Proxy, server: str) -> dict[str, Any]:
    """Detaches the devices."""
    params = module.params
    attachment = params["attachment"]
    if attachment is not None:
        try:
            attachment = str(uuid.UUID(attachment))
        except ValueError:
            module.fail_json(msg=f"invalid attachment {attachment}: expected the whole id, a UUID")
    held = [
        one for one in attachments(module, pci, server)
        if (one.id == attachment if attachment else is_named(one, params))
    ]
    # A detach under way goes on without a request, unless it is to be waited for, or to be forced.
    asked = [
        one for one in held
        if one.status != "detaching" or params["wait"] or (params["force"] and not one.is_forced)
    ]
    for one in [] if module.check_mode else asked:
        pci.detach(server, one.id, wait=params["wait"], timeout=params["timeout"], force=params["force"])
    return {"changed": bool(asked), "attachments": [shown(one) for one in held]}


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["present", "absent"], "default": "present"},
            "server": {"required": True},
            "alias": {},
            "count": {"type": "int", "default": 1},
            "address": {},
            "attachment": {},
            "persistent": {"type": "bool"},
            "whole_group": {"type": "bool", "default": False},
            "numa_policy": {"choices": ["required", "preferred", "legacy", "socket"]},
            "vgpu_type": {},
            "mac_address": {},
            "vlan": {"type": "int"},
            "physical_network": {},
            "trusted": {"type": "bool", "default": False},
            "spoof_check": {"type": "bool"},
            "link_state": {"choices": ["auto", "enable", "disable"]},
            "min_tx_rate": {"type": "int"},
            "max_tx_rate": {"type": "int"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int"},
            "force": {"type": "bool", "default": False},
            "socket": {"type": "path"},
            "cloud": {},
            "auth": {"type": "dict", "no_log": True},
            "auth_type": {},
            "region_name": {},
            "interface": {"choices": ["public", "internal", "admin"]},
            "validate_certs": {"type": "bool"},
            "ca_cert": {"type": "path"},
        },
        required_by={"auth": ["auth_type"]},
        required_if=[
            ("state", "present", ["alias", "address"], True),
            ("state", "absent", ["alias", "address", "attachment"], True),
        ],
        mutually_exclusive=[("alias", "address", "attachment"), ("socket", "cloud", "auth")],
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("python-hotslotclient"), exception=str(MISSING))
    if module.params["count"] < 1:
        module.fail_json(msg="count must be at least 1; use state=absent to detach the devices")
    if module.params["address"] and module.params["count"] != 1:
        module.fail_json(msg="address names one device, so count must be 1")
    if module.params["mac_address"] and module.params["count"] != 1:
        module.fail_json(msg="mac_address applies to one device, so count must be 1")
    if module.params["vgpu_type"] and not VGPU_TYPE.fullmatch(module.params["vgpu_type"]):
        module.fail_json(msg="vgpu_type must be the id of a type, such as nvidia-1155 (`hotslot device show` has them)")
    try:
        pci = connected(module.params)
        server = pci.find_server(module.params["server"])
        act = present if module.params["state"] == "present" else absent
        result = act(module, pci, server)
    except exceptions.HttpException as error:
        module.fail_json(msg=error.details or str(error), status=error.status_code, request_id=error.request_id)
    except (exceptions.SDKException, ClientException) as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**result)


if __name__ == "__main__":
    main()
