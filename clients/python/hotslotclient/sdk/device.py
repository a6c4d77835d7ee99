"""PCI devices that can be assigned (``os-pci``)."""

from openstack import resource

from hotslotclient.sdk.listed import Listed


class Device(Listed):
    """A PCI function of a host that an entry of the whitelist selects."""

    resource_key = "pci_device"
    resources_key = "pci_devices"
    base_path = "/v2.1/os-pci"
    allow_fetch = True

    _query_mapping = resource.QueryParameters(
        "address", "dev_id", "dev_type", "host", "label", "numa_node", "parent_addr", "product_id", "request_id",
        "status", "uuid", "vendor_id", compute_node_id="compute_node_id", server_id="instance_uuid",
    )

    #: The address in the host, such as ``0000:3b:10.0``.
    address = resource.Body("address")
    #: The number of the host.
    compute_node_id = resource.Body("compute_node_id", type=int)
    created_at = resource.Body("created_at")
    #: The name of libvirt's node device without its prefix.
    dev_id = resource.Body("dev_id")
    #: ``type-PCI``, ``type-PF``, ``type-VF`` or ``vdpa``.
    dev_type = resource.Body("dev_type")
    #: What the host and the rules say about the device, by key.
    extra_info = resource.Body("extra_info", type=dict)
    #: When the device disappeared from its host; none while it is there.
    gone_at = resource.Body("gone_at")
    host = resource.Body("host")
    #: The server that has the device.
    server_id = resource.Body("server_uuid")
    label = resource.Body("label")
    numa_node = resource.Body("numa_node", type=int)
    #: Who put the device into its server, when hotslot has not.
    owner = resource.Body("owner")
    #: The address of the PF of a VF.
    parent_addr = resource.Body("parent_addr")
    product_id = resource.Body("product_id")
    request_id = resource.Body("request_id")
    #: ``available``, ``claimed``, ``allocated``, ``unavailable``, ``unclaimable``, ``removed`` or ``deleted``.
    status = resource.Body("status")
    updated_at = resource.Body("updated_at")
    #: When a device with ``one_time_use`` was used; none when it is clean.
    used_at = resource.Body("used_at")
    uuid = resource.Body("uuid")
    vendor_id = resource.Body("vendor_id")
