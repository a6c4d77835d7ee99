"""PCI devices of servers (``os-pci_attachments``)."""

from openstack import resource

from hotslotclient.sdk.listed import Listed


class Attachment(Listed):
    """A PCI device that a server has, gets or had."""

    resource_key = "pciAttachment"
    resources_key = "pciAttachment"
    base_path = "/v2.1/os-pci_attachments"
    allow_fetch = True

    _query_mapping = resource.QueryParameters("ended")

    attachment_id = resource.Body("attachment_id", alternate_id=True)
    #: The address in the host. None for callers who may not see hosts.
    address = resource.Body("address")
    alias = resource.Body("alias")
    attached_at = resource.Body("attached_at")
    created_at = resource.Body("created_at")
    dev_id = resource.Body("dev_id")
    ended_at = resource.Body("ended_at")
    #: Whether the detach was forced.
    is_forced = resource.Body("forced", type=bool)
    #: Who holds the device, when that is not the server's owner: an accelerator or an accelerator request.
    holder = resource.Body("holder")
    host = resource.Body("host")
    #: The address that the guest sees.
    inner_address = resource.Body("inner_address")
    #: ``computed`` from the topology of the guest, or ``verified`` by the guest.
    inner_address_source = resource.Body("inner_address_source")
    #: The link that the guest sees of the VF of a NIC: ``auto``, ``enable`` or ``disable``. None when not requested.
    link_state = resource.Body("link_state")
    mac_address = resource.Body("mac_address")
    #: The bandwidths of the VF of a NIC in Mbit/s. None when they were not requested.
    max_tx_rate = resource.Body("max_tx_rate", type=int)
    min_tx_rate = resource.Body("min_tx_rate", type=int)
    #: Whether the definition of the server has the device too.
    is_persistent = resource.Body("persistent", type=bool)
    physical_network = resource.Body("physical_network")
    product_id = resource.Body("product_id")
    request_id = resource.Body("request_id")
    server_id = resource.Body("serverId")
    #: Whether the VF of a NIC drops frames with another source address than its own. None when it was not requested.
    is_spoof_checked = resource.Body("spoof_check", type=bool)
    #: The type of virtual GPU that was requested for the VF. None when none was.
    vgpu_type = resource.Body("vgpu_type")
    #: ``attaching``, ``attached``, ``detaching``, ``detached`` or ``failed``.
    status = resource.Body("status")
    status_reason = resource.Body("status_reason")
    is_trusted = resource.Body("trusted", type=bool)
    updated_at = resource.Body("updated_at")
    vendor_id = resource.Body("vendor_id")
    vlan = resource.Body("vlan", type=int)
    whole_group = resource.Body("whole_group", type=bool)
