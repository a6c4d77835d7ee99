"""``accelerators``: Cyborg's first API."""

from typing import Any, ClassVar

from tempest.lib import decorators, exceptions

from hotslot_tempest_plugin.tests.api import base
from tempest import config

CONF = config.CONF


class AcceleratorsTest(base.ServerTest):
    """Accelerators of an administrator."""

    spec: ClassVar[dict[str, Any]]

    @classmethod
    def resource_setup(cls) -> None:
        """Reads the configuration."""
        super().resource_setup()
        cls.spec = {"num": 1, "remote": 0, "device_type": CONF.hotslot.device_type}

    def created(self, name: str) -> str:
        """Creates an accelerator with the spec, which is deleted when the test ends, and returns its path."""
        answer = self.admin.ask("POST", "/v1/accelerators", {"name": name}, expected=201)
        path = f"/v1/accelerators/{answer.response['location'].rpartition('/')[2]}"
        self.addCleanup(self.admin.ask, "DELETE", path, expected=204, query={"purge": "true"})
        self.admin.ask("PUT", f"{path}/acc_specs", {"acc_specs": self.spec})
        return path

    @decorators.idempotent_id("7f809122-b3c4-4d5e-8f60-718293a4b5dd")
    def test_create_attach_release(self) -> None:
        """An accelerator gets a device of its type for a server, releases it, and keeps its name and spec."""
        path = self.created("tempest-attached")
        self.assertEqual("available", self.admin.ask("GET", path)["status"])
        attached = self.admin.ask("PUT", path, {"instance_uuid": self.server_id})
        self.assertEqual(self.server_id, attached["instance_uuid"])
        self.assertEqual(CONF.hotslot.device_type, attached["device_type"])
        [held] = self.admin.attachments(self.server_id)
        self.assertEqual(f"accelerator:{attached['uuid']}", held["holder"])
        self.assertRaises(exceptions.Conflict, self.member.detach, self.server_id, held["attachment_id"])
        self.admin.ask("DELETE", path, expected=204)
        released = self.admin.ask("GET", path)
        self.assertEqual(("tempest-attached", None), (released["name"], released["instance_uuid"]))
        self.assertEqual([], self.admin.attachments(self.server_id))

    @decorators.idempotent_id("8091a233-c4d5-4e6f-9071-8293a4b5c6ee")
    def test_an_outdated_etag_is_refused(self) -> None:
        """A change with the ETag of an earlier spec is a conflict."""
        path = self.created("tempest-etag")
        tag = {"If-Match": self.admin.ask("GET", path).response["etag"]}
        self.admin.ask("PUT", f"{path}/acc_specs", {"acc_specs": {**self.spec, "num": 2}}, headers=tag)
        body = {"acc_specs": self.spec}
        self.assertRaises(exceptions.Conflict, self.admin.ask, "PUT", f"{path}/acc_specs", body, headers=tag)

    @decorators.attr(type=["negative"])
    @decorators.idempotent_id("91a2b344-d5e6-4f70-8182-93a4b5c6d7ff")
    def test_what_is_refused(self) -> None:
        """Unknown accelerators are not found, and invalid specs are bad requests."""
        path = self.created("tempest-refused")
        self.assertRaises(exceptions.NotFound, self.admin.ask, "GET", f"/v1/accelerators/{base.NOBODY}")
        self.assertRaises(exceptions.NotFound, self.admin.ask, "PUT", path, {"instance_uuid": base.NOBODY})
        for spec in ({"num": -1}, {"device_type": "TOASTER"}):
            body = {"acc_specs": {**self.spec, **spec}}
            self.assertRaises(exceptions.BadRequest, self.admin.ask, "PUT", f"{path}/acc_specs", body)
        self.assertRaises(exceptions.Forbidden, self.reader.ask, "POST", "/v1/accelerators", {"name": "x"})
