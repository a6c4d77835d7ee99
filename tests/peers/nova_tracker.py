"""The time of Nova's PCI tracker for a claim and for an unchanged round, without its database.

    python3 -m venv /tmp/nova && /tmp/nova/bin/pip install nova==34.0.0
    /tmp/nova/bin/python tests/peers/nova_tracker.py

The tracker is given the functions of one host, as the libvirt driver reports them. Its database is taken away, so these
are lower bounds: nova-compute saves each claim and each free besides.
"""

import json
import statistics
import time
import uuid
from unittest import mock

from nova import config, context, objects
from nova.objects import fields
from nova.pci import manager
from oslo_config import cfg

ROUNDS = 30
VFS_PER_PF = 127


def functions(count):
    """Describes PFs with 127 VFs each, `count` functions in all."""
    for number in range(count):
        pf, function = divmod(number, VFS_PER_PF + 1)
        place = f"{pf:02x}:{function // 8:02x}.{function % 8}"
        common = {
            "address": f"0000:{place}",
            "dev_id": "pci_0000_" + place.replace(":", "_").replace(".", "_"),
            "vendor_id": "8086",
            "numa_node": 0,
            "label": "label_8086",
            "status": "available",
            "request_id": None,
            "extra_info": None,
        }
        if function == 0:
            yield {**common, "product_id": "10c9", "dev_type": "type-PF"}
        else:
            yield {**common, "product_id": "10ca", "dev_type": "type-VF", "parent_addr": f"0000:{pf:02x}:00.0"}


def milliseconds(work, *arguments):
    """Runs some work, and returns its result and its time."""
    start = time.perf_counter()
    result = work(*arguments)
    return result, (time.perf_counter() - start) * 1e3


def report(what, times):
    """Prints the median and the 99th percentile."""
    times.sort()
    print(f"{what:40} p50 {statistics.median(times):9.2f} ms   p99 {times[int((len(times) - 1) * 0.99)]:9.2f} ms")


def measure(count):
    """Measures a host of `count` functions."""
    cfg.CONF.set_override("device_spec", ['{"vendor_id": "8086"}'], "pci")
    admin = context.get_admin_context()
    host = json.dumps(list(functions(count)))
    empty = objects.PciDeviceList(objects=[])
    with mock.patch.object(objects.PciDeviceList, "get_by_compute_node", return_value=empty):
        tracker = manager.PciDevTracker(admin, objects.ComputeNode(id=1, numa_topology=None))
    _, first = milliseconds(tracker.update_devices_from_hypervisor_resources, host)
    print(f"\n{count} functions; the first round takes {first:.0f} ms")
    rounds, claims, frees = [], [], []
    for _ in range(3):
        rounds.append(milliseconds(tracker.update_devices_from_hypervisor_resources, host)[1])
    report("unchanged round", rounds)
    for number, device in enumerate(tracker.pci_devs):
        device.id = number + 1
    spec = [{"vendor_id": "8086", "product_id": "10ca", "dev_type": fields.PciDeviceType.SRIOV_VF}]
    for _ in range(ROUNDS):
        server = str(uuid.uuid4())
        request = objects.InstancePCIRequest(count=1, spec=spec, alias_name="vf", request_id=str(uuid.uuid4()))
        requests = objects.InstancePCIRequests(instance_uuid=server, requests=[request])
        devices, took = milliseconds(tracker.claim_instance, admin, requests, None)
        assert len(devices) == 1, devices
        claims.append(took)
        instance = objects.Instance(uuid=server, pci_devices=objects.PciDeviceList(objects=[]))
        tracker.allocate_instance(instance)
        frees.append(milliseconds(tracker.free_device, devices[0], instance)[1])
    report("claim of 1 VF", claims)
    report("free of 1 VF", frees)


config.parse_args(["nova"], default_config_files=[])
objects.register_all()
for size in (64, 512, 4096):
    measure(size)
