"""``servers/{id}/os-pci_attachments``."""

import uuid

from tempest.lib import decorators, exceptions

from hotslot_tempest_plugin.tests.api import base

#: The keys of the wiki page "Nova/pci hotplug".
KEYS = {"attachment_id", "serverId", "dev_id", "address", "inner_address", "vendor_id", "product_id"}


class PciAttachmentsTest(base.ServerTest):
    """Devices of a running server."""

    @decorators.idempotent_id("c0b7f9e2-3d65-4d5b-a9a1-0e6c1b2d3f77")
    def test_attach_show_detach(self) -> None:
        """A device is attached, shown in all lists, and detached."""
        attachment = self.attached()
        self.assertTrue(set(attachment) >= KEYS)
        self.assertEqual("attached", attachment["status"])
        self.assertEqual(self.server_id, attachment["serverId"])
        name = attachment["attachment_id"]
        path = f"/v2.1/servers/{self.server_id}/os-pci_attachments/{name}"
        for client in (self.reader, self.member, self.admin):
            shown = client.ask("GET", path)["pciAttachment"]
            self.assertEqual((name, "attached"), (shown["attachment_id"], shown["status"]))
            self.assertIn(name, [one["attachment_id"] for one in client.attachments(self.server_id)])
            every = client.ask("GET", "/v2.1/os-pci_attachments")["pciAttachment"]
            self.assertIn(name, [one["attachment_id"] for one in every])
        [device] = self.admin.devices(detail=True, instance_uuid=self.server_id)
        self.assertEqual("allocated", device["status"])
        self.member.detach(self.server_id, name)
        self.assertRaises(exceptions.NotFound, self.member.ask, "GET", path)
        ended = {one["attachment_id"]: one["status"] for one in self.member.attachments(self.server_id, ended="true")}
        self.assertEqual("detached", ended[name])
        self.assertEqual("available", self.admin.ask("GET", f"/v2.1/os-pci/{device['id']}")["pci_device"]["status"])

    @decorators.idempotent_id("19a7c2d4-57f8-4a3b-8d6a-2f5e9b0c1d88")
    def test_the_host_is_shown_to_administrators_only(self) -> None:
        """A member does not see the host of a device, nor its address there."""
        attachment = self.attached()
        self.assertIsNone(attachment["address"])
        self.assertIsNone(attachment["host"])
        [shown] = self.admin.attachments(self.server_id)
        self.assertIsNotNone(shown["address"])
        self.assertIsNotNone(shown["host"])

    @decorators.idempotent_id("2d8e4f6a-1b3c-4d5e-9f70-8a9b0c1d2e99")
    def test_a_dry_run_changes_nothing(self) -> None:
        """A dry run tells that the attach would succeed."""
        body = {"pciAttachment": {"pci_passthrough:alias": f"{self.alias}:1"}, "dry_run": True}
        verdict = self.member.ask("POST", f"/v2.1/servers/{self.server_id}/os-pci_attachments", body)["dry_run"]
        self.assertTrue(verdict["would_attach"])
        self.assertEqual([], self.member.attachments(self.server_id))

    @decorators.idempotent_id("4a5b6c7d-8e9f-4a0b-9c1d-2e3f4a5b6caa")
    def test_a_repeated_request_attaches_once(self) -> None:
        """Two requests with one Idempotency-Key attach one device."""
        key = {"Idempotency-Key": str(uuid.uuid4())}
        attachment = self.attached(headers=key)
        self.assertEqual([attachment], self.member.attach(self.server_id, f"{self.alias}:1", headers=key))
        self.assertEqual(1, len(self.member.attachments(self.server_id)))

    @decorators.idempotent_id("5c6d7e8f-9a0b-4c1d-8e2f-3a4b5c6d7ebb")
    def test_version_2_1_detaches_in_the_background(self) -> None:
        """The response to a DELETE under v2.1 is 202, and a second one waits for the outcome."""
        name = self.attached()["attachment_id"]
        path = f"servers/{self.server_id}/os-pci_attachments/{name}"
        self.member.ask("DELETE", f"/v2.1/{path}", expected=202)
        self.member.detach(self.server_id, name)
        self.assertEqual([], self.member.attachments(self.server_id))

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("6e7f8091-a2b3-4c4d-9e5f-60718293a4cc")
    def test_what_is_refused(self) -> None:
        """Unknown names, invalid bodies and readers are refused, and nothing is attached."""
        one = f"{self.alias}:1"
        for error, arguments in (
            (exceptions.NotFound, (base.NOBODY, one)),
            (exceptions.NotFound, ("no-uuid", one)),
            (exceptions.BadRequest, (self.server_id, "there-is-no-such-alias:1")),
            (exceptions.BadRequest, (self.server_id, f"{self.alias}:0")),
        ):
            self.assertRaises(error, self.member.attach, *arguments)
        self.assertRaises(exceptions.BadRequest, self.member.attach, self.server_id, one, unknown=True)
        self.assertRaises(exceptions.NotFound, self.member.detach, self.server_id, base.NOBODY)
        self.assertRaises(exceptions.Forbidden, self.reader.attach, self.server_id, one)
        self.assertEqual([], self.member.attachments(self.server_id))
