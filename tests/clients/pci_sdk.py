"""The Python API of python-hotslotclient.

    pci_sdk.py            with the clouds of clouds.yaml
    pci_sdk.py SOCKET     with the service at a unix socket, on the simulated host `small`

The cloud `admin` is an administrator, and `member` a member of the project that owns the server g1.
"""

import sys

import openstack
from hotslotclient import sdk
from hotslotclient.osc import remedy
from keystoneauth1.exceptions import ClientException
from openstack import exceptions


def refused(error, words, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as said:
        assert words in str(said), said
    else:
        raise AssertionError(f"{call.__name__} was not refused: {words}")


def devices(pci):
    assert len(list(pci.devices())) == len(list(pci.devices(limit=1))) == 6, "a list has all pages"
    vf = pci.find_device("0000:a1:01.1")
    assert (vf.dev_type, vf.vendor_id, vf.extra_info["phys_function"]) == ("type-VF", "8086", "0000:a1:00.0")
    assert pci.get_device(vf.id).uuid == pci.find_device(vf.uuid, host="node1").uuid == vf.uuid
    assert [one.address for one in pci.devices(extra_info={"phys_function": "0000:a1:00.0"}, numa_node=1)] == [
        "0000:a1:01.0", "0000:a1:01.1"]
    refused(exceptions.NotFoundException, "0000:ff:00.0", pci.find_device, "0000:ff:00.0")
    [host] = pci.hypervisors()
    assert (host.name, sum(stat["count"] for stat in host.pci_stats)) == ("node1", 6)
    [alias] = pci.rules("alias")
    assert alias.entry["name"] == "qat"
    assert alias.is_read_only
    assert pci.get_rule("alias", alias.id).place == "[pci] alias[0]"


def attachments(pci, admin):
    assert pci.try_attach("g1", "qat:1")["would_attach"]
    assert list(pci.attachments("g1")) == []
    one, two = pci.attach("g1", "qat:2", persistent=False)
    assert (one.status, one.alias, one.inner_address, one.is_persistent) == ("attached", "qat", "0000:01:00.0", False)
    assert pci.wait_for_attachment("g1", one.id, timeout=20).inner_address_source == "verified"
    assert {each.id for each in pci.attachments("g1")} == {each.id for each in pci.attachments()} == {one.id, two.id}
    assert {each.address for each in admin.attachments("g1")} == {"0000:a1:01.0", "0000:a1:01.1"}
    assert len(list(pci.attachments("g1", alias="qat", limit=1))) == 2
    # A member of a project is told less than an administrator.
    refused(exceptions.BadRequestException, "too few devices", pci.attach, "g1", "qat")
    refused(exceptions.BadRequestException, "it is allocated", admin.attach, "g1", "qat")
    refused(exceptions.NotFoundException, "g2", pci.attach, "g2", "qat")
    pci.detach("g1", one.id)
    refused(exceptions.NotFoundException, one.id, pci.get_attachment, "g1", one.id)
    refused(exceptions.ResourceFailure, "has ended", pci.wait_for_attachment, "g1", one.id)
    pci.detach("g1", one.id)
    pci.detach("g1", two.id, timeout=5, wait=False, force=True)
    pci.detach("g1", two.id)
    assert {each.id: each.status for each in pci.attachments("g1", ended=True)} == {
        one.id: "detached", two.id: "detached"}


def remedies():
    """Messages of the service name commands in place of routes."""
    for said, shown in (
        ("GET servers lists those there are", "`openstack server list` lists those there are"),
        ("a1; GET os-pci/detail lists them, GET os-pci too", "a1; `openstack pci device list --long` lists them, "
         "`openstack pci device list` too"),
        ("GET os-pci_attachments", "`openstack server pci list`"),
        ("GET os-pci-config", "GET os-pci-config"),
        ('ask with "whole_group": true, or with another numa_policy', "ask with --whole-group, or with another "
         "--numa-policy"),
        ("min_tx_rate: 20 is more than max_tx_rate, 10", "--min-rate: 20 is more than --max-rate, 10"),
        ("attach without trusted, spoof_check, link_state", "attach without --trusted, --spoof-check, --link-state"),
        ("detach with force, or add ?force=true: it goes", "detach with --force, or add --force: it goes"),
    ):
        assert remedy.by_commands(said) == shown, remedy.by_commands(said)


def over_socket(path):
    pci = sdk.connect(socket=path).pci
    [vf] = pci.attach("q35", "vf", spoof_check=False, link_state="enable", max_tx_rate=100)
    assert (vf.is_spoof_checked, vf.link_state, vf.min_tx_rate, vf.max_tx_rate) == (False, "enable", None, 100)
    assert vf.id in {each.id for each in pci.attachments(limit=1)}
    assert len(list(pci.devices(limit=2))) == len(list(pci.devices())) > 2
    pci.detach("q35", vf.id)
    refused(ClientException, "cannot connect to the socket /nowhere: No such file", sdk.connect(
        socket="/nowhere").pci.attach, "q35", "vf")


def main():
    remedies()
    admin, member = sdk.connect(cloud="admin"), sdk.connect(cloud="member")
    devices(admin.pci)
    attachments(member.pci, admin.pci)
    # The hook of clouds.yaml.
    assert [server.name for server in openstack.connect(cloud="hooked").pci.servers()] == ["g1"]


if __name__ == "__main__":
    if sys.argv[1:]:
        over_socket(*sys.argv[1:])
    else:
        main()
