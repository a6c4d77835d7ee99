"""openstacksdk's accelerator proxy against a service on the simulated host `accelerators`.

    sdk.py URL
"""

import sys
import time

import openstack
from openstack import exceptions

RP = "e68701b5-a447-346e-9884-90ebf94e5651"
G1, G3 = (f"20000000-0000-4000-8000-00000000000{number}" for number in (1, 3))


def refused(error, words, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as said:
        assert words in str(said), said
    else:
        raise AssertionError(f"{call.__name__} was not refused: {words}")


def bound(arq):
    return [
        {"op": "add", "path": "/hostname", "value": "node1"},
        {"op": "add", "path": "/device_rp_uuid", "value": RP},
        {"op": "add", "path": "/instance_uuid", "value": arq},
    ]


UNBOUND = [{"op": "remove", "path": f"/{name}"} for name in ("hostname", "device_rp_uuid", "instance_uuid")]


def becomes(proxy, arq, state):
    end = time.monotonic() + 20
    while (now := proxy.get_accelerator_request(arq)).state != state:
        assert time.monotonic() < end, f"{arq} is {now.state}, not {state}"
        time.sleep(0.1)
    return now


def main(url):
    cloud = openstack.connect(
        auth_type="none", endpoint=f"{url}/v2.1", accelerator_endpoint_override=f"{url}/accelerator/v2",
        accelerator_default_microversion="2.3",
    )
    proxy = cloud.accelerator
    assert [server.name for server in cloud.compute.servers()] == ["g1", "g2", "g3"]
    assert [host.name for host in cloud.compute.hypervisors()] == ["node1"]

    devices = list(proxy.devices())
    assert {device.type for device in devices} == {"GPU", "AICHIP", "QAT", "FPGA"}
    qat = next(device for device in devices if device.type == "QAT")
    assert (qat.status, qat.hostname, qat.vendor) == ("enabled", "node1", "8086")
    assert [device.uuid for device in proxy.devices(type="QAT")] == [qat.uuid]
    proxy.disable_device(qat.uuid)
    assert proxy.get_device(qat.uuid).status == "maintaining"
    proxy.enable_device(qat.uuid)
    assert proxy.get_device(qat.uuid).status == "enabled"

    deployable = next(one for one in proxy.deployables() if one.name == "node1_0000:a1:00.0")
    assert proxy.get_deployable(deployable.id).num_accelerators == 2
    program = [{"op": "replace", "path": "/program", "value": [{"image_uuid": G1}]}]
    refused(exceptions.HttpException, "cannot program FPGAs", proxy.patch_deployable, deployable.id, program)

    said = proxy.create_attribute(deployable_id=deployable.device_id, key="rack", value="r1")
    assert proxy.get_attribute(said.uuid).value == "r1"
    assert said.uuid in {attribute.uuid for attribute in proxy.attributes()}
    proxy.delete_attribute(said.uuid, ignore_missing=False)
    refused(exceptions.NotFoundException, "attribute", proxy.get_attribute, said.uuid)

    groups = [{"resources:CUSTOM_QAT": "2", "trait:CUSTOM_QAT_INTEL": "required"}]
    profile = proxy.create_device_profile(name="qat", groups=groups)
    assert proxy.get_device_profile(profile.uuid).groups == groups
    assert proxy.get_device_profile("qat").uuid == profile.uuid
    refused(exceptions.ConflictException, "already", proxy.create_device_profile, name="qat", groups=groups)
    assert [one.name for one in proxy.device_profiles()] == ["qat"]

    # Two requests are created, and the SDK returns the first.
    first = proxy.create_accelerator_request(device_profile_name="qat")
    arqs = [arq.uuid for arq in proxy.accelerator_requests()]
    assert (len(arqs), arqs[0], first.state) == (2, first.uuid, "Initial")
    # A running server and one that is shut off.
    for arq, server in zip(arqs, (G1, G3)):
        proxy.patch_accelerator_request(arq, bound(server))
        shown = becomes(proxy, arq, "Bound")
        assert (shown.instance_uuid, shown.attach_handle_type) == (server, "PCI")
        assert shown.attach_handle_info["bus"] == "a1"
    refused(exceptions.BadRequestException, "is Bound", proxy.patch_accelerator_request, arqs[0], bound(G3))
    proxy.update_accelerator_request(arqs[0], UNBOUND)
    assert proxy.get_accelerator_request(arqs[0]).state == "Unbound"
    refused(exceptions.ConflictException, "is used by", proxy.delete_device_profile, profile.uuid)
    for arq in arqs:
        proxy.delete_accelerator_request(arq, ignore_missing=False)
        refused(exceptions.NotFoundException, arq, proxy.get_accelerator_request, arq)
    proxy.delete_device_profile(profile.uuid, ignore_missing=False)
    assert list(proxy.accelerator_requests()) == []


if __name__ == "__main__":
    main(sys.argv[1])
