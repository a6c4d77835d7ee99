"""The rules that decide which devices can be assigned, and under which names (``os-pci-config``)."""

from typing import Literal

from openstack import resource

from hotslotclient.sdk.listed import Listed

#: The kinds of rules, as the paths of the API name them.
Kind = Literal["alias", "whitelist", "extra_info"]


class Rule(Listed):
    """An entry of the configuration file, which is read-only, or one that was created through the API."""

    allow_fetch = True

    #: The entry in the syntax of ``nova.conf``.
    entry = resource.Body("entry", type=dict)
    #: ``file`` or ``api``.
    source = resource.Body("source")
    #: The place of the entry in the configuration file.
    place = resource.Body("place")
    is_read_only = resource.Body("read_only", type=bool)
    #: The position among the entries of its kind, from 1.
    position = resource.Body("position", type=int)
    #: Why the entry has no effect; none when it has.
    problem = resource.Body("problem")
    created_at = resource.Body("created_at")
    updated_at = resource.Body("updated_at")


class Alias(Rule):
    """A name by which devices are requested."""

    base_path = "/v2.1/os-pci-config/alias"
    resource_key = "alias"
    resources_key = "alias"


class Whitelist(Rule):
    """Devices that can be assigned (``device_spec``)."""

    base_path = "/v2.1/os-pci-config/whitelist"
    resource_key = "whitelist"
    resources_key = "whitelist"


class ExtraInfo(Rule):
    """Facts about devices that hosts do not report."""

    base_path = "/v2.1/os-pci-config/extra_info"
    resource_key = "extra_info"
    resources_key = "extra_info"


KINDS: dict[Kind, type[Rule]] = {"alias": Alias, "whitelist": Whitelist, "extra_info": ExtraInfo}
