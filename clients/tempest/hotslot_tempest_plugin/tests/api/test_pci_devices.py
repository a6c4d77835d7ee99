"""``os-pci`` and the numbers of free devices in ``os-hypervisors``."""

from tempest.lib import decorators, exceptions

from hotslot_tempest_plugin.tests.api import base

KEYS = {"id", "address", "compute_node_id", "product_id", "vendor_id", "status"}


class PciDevicesTest(base.BaseTest):
    """Devices that can be assigned."""

    @decorators.idempotent_id("5b7a2a06-6d7e-4a39-a0df-7f5d3a0e51a0")
    def test_list_has_the_keys_of_nova(self) -> None:
        """The list has Nova's keys, and the detailed list has the same devices with more keys."""
        brief, full = self.admin.devices(), self.admin.devices(detail=True)
        self.assertNotEmpty(brief)
        for device in brief:
            self.assertEqual(KEYS, set(device))
        self.assertEqual(brief, [{key: device[key] for key in device if key in KEYS} for device in full])
        self.assertTrue(all(isinstance(device["extra_info"], dict) for device in full))

    @decorators.idempotent_id("0fe1a4de-2f0c-4f43-8f0a-9f4b6c3de8a1")
    def test_show_by_id_and_uuid(self) -> None:
        """A device is shown by its id and by its UUID, as in the detailed list."""
        device = self.admin.devices(detail=True)[0]
        for name in (device["id"], device["uuid"]):
            shown = self.admin.ask("GET", f"/v2.1/os-pci/{name}")["pci_device"]
            self.assertEqual(device["uuid"], shown["uuid"])
            self.assertEqual(device["address"], shown["address"])

    @decorators.idempotent_id("6d4c3b0a-8a53-4f6e-9e7e-2c0a9c4fb1d2")
    def test_filters(self) -> None:
        """A filter returns the devices that have the value, and no others."""
        device = self.admin.devices(detail=True)[0]
        for key in ("vendor_id", "product_id", "dev_type", "status", "address"):
            found = self.admin.devices(detail=True, **{key: device[key]})
            self.assertIn(device["uuid"], [one["uuid"] for one in found])
            self.assertEqual({device[key]}, {one[key] for one in found})
        self.assertEqual([], self.admin.devices(address="ffff:ff:1f.7"))

    @decorators.idempotent_id("a8f2c1f5-30c8-4d27-8d4e-5b6b2e9f7c33")
    def test_pages(self) -> None:
        """The pages of one device each are the list."""
        devices, pages = self.admin.devices(), []
        page = self.admin.devices(limit=1)
        while page:
            pages += page
            page = self.admin.devices(limit=1, marker=page[0]["id"])
        self.assertEqual([device["id"] for device in devices], [device["id"] for device in pages])

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("f1a3b77c-9a6e-47a5-8d7b-6f5b8a1d9e44")
    def test_what_is_refused(self) -> None:
        """An unknown device is not found, and an invalid filter or marker is a bad request."""
        self.assertRaises(exceptions.NotFound, self.admin.ask, "GET", f"/v2.1/os-pci/{base.NOBODY}")
        self.assertRaises(exceptions.BadRequest, self.admin.devices, vendor_id="vendor")
        self.assertRaises(exceptions.BadRequest, self.admin.devices, marker="0")

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("3c9d5e10-0c4f-4d0b-bb0c-7a3f2b8e6d55")
    def test_members_see_no_devices_of_hosts(self) -> None:
        """Devices are for administrators."""
        for client in (self.member, self.reader):
            self.assertRaises(exceptions.Forbidden, client.devices)

    @decorators.idempotent_id("7e2b1d9a-4f1a-4c36-9c2a-1d8e5f3b7a66")
    def test_pci_stats_count_the_free_devices(self) -> None:
        """The kinds that a host has free are those of its devices that are available."""
        for host in self.admin.ask("GET", "/v2.1/os-hypervisors/detail")["hypervisors"]:
            free = self.admin.devices(host=host["hypervisor_hostname"], status="available")
            kinds = {(device["vendor_id"], device["product_id"]) for device in free}
            stats = [stat for stat in host["pci_stats"] if stat["count"]]
            self.assertEqual(kinds, {(stat["vendor_id"], stat["product_id"]) for stat in stats})
