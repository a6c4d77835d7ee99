"""Hosts with the numbers of their free devices (``os-hypervisors``)."""

from openstack import resource

from hotslotclient.sdk.listed import Listed


class Hypervisor(Listed):
    """A host."""

    resource_key = "hypervisor"
    resources_key = "hypervisors"
    base_path = "/v2.1/os-hypervisors/detail"

    name = resource.Body("hypervisor_hostname")
    #: The free devices by kind, each with ``count``, ``vendor_id``, ``product_id``, ``numa_node`` and ``extra_info``.
    pci_stats = resource.Body("pci_stats", type=list, list_type=dict)
    #: ``up`` or ``down``.
    state = resource.Body("state")
    #: Why the host is down.
    state_reason = resource.Body("state_reason")


class Server(Listed):
    """A guest of a host."""

    resources_key = "servers"
    base_path = "/v2.1/servers"

    _query_mapping = resource.QueryParameters("name", "host", "status")

    host = resource.Body("host")
    status = resource.Body("status")
