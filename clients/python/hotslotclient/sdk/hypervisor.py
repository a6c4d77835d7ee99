"""Hosts with the numbers of their free devices (``os-hypervisors``)."""

from openstack import resource


class Hypervisor(resource.Resource):
    """A host."""

    resource_key = "hypervisor"
    resources_key = "hypervisors"
    base_path = "/v2.1/os-hypervisors/detail"
    allow_list = True

    name = resource.Body("hypervisor_hostname")
    #: The free devices by kind, each with ``count``, ``vendor_id``, ``product_id``, ``numa_node`` and ``extra_info``.
    pci_stats = resource.Body("pci_stats", type=list, list_type=dict)
    #: ``up`` or ``down``.
    state = resource.Body("state")
    #: Why the host is down.
    state_reason = resource.Body("state_reason")


class Server(resource.Resource):
    """A guest of a host."""

    resources_key = "servers"
    base_path = "/v2.1/servers"
    allow_list = True

    _query_mapping = resource.QueryParameters("name", "host", "status")

    host = resource.Body("host")
    status = resource.Body("status")
