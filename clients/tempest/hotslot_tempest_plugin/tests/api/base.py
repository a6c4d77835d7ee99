"""What the tests have in common."""

from typing import Any, ClassVar

from hotslot_tempest_plugin.client import HotslotClient
from tempest import clients, config, test

CONF = config.CONF

#: An id that nothing has.
NOBODY = "00000000-0000-4000-8000-00000000dead"


class BaseTest(test.BaseTestCase):
    """A test with an administrator, a member and a reader of the project that owns the server."""

    credentials: ClassVar[list[str]] = ["admin", "project_member", "project_reader"]

    admin: ClassVar[HotslotClient]
    member: ClassVar[HotslotClient]
    reader: ClassVar[HotslotClient]

    @classmethod
    def skip_checks(cls) -> None:
        """Skips the tests where the service is not available."""
        super().skip_checks()
        if not CONF.service_available.hotslot:
            raise cls.skipException("hotslot is not available")

    @classmethod
    def setup_clients(cls) -> None:
        """Makes the clients."""
        super().setup_clients()
        cls.admin, cls.member, cls.reader = map(_client, (cls.os_admin, cls.os_project_member, cls.os_project_reader))


class ServerTest(BaseTest):
    """A test that attaches devices to the configured server."""

    server_id: ClassVar[str]
    alias: ClassVar[str]

    @classmethod
    def skip_checks(cls) -> None:
        """Skips the tests where no server is configured."""
        super().skip_checks()
        if not (CONF.hotslot.server_id and CONF.hotslot.alias):
            raise cls.skipException("[hotslot] server_id and alias name no server and devices for this test")

    @classmethod
    def resource_setup(cls) -> None:
        """Reads the configuration."""
        super().resource_setup()
        cls.server_id, cls.alias = CONF.hotslot.server_id, CONF.hotslot.alias

    def attached(self, **options: Any) -> dict[str, Any]:
        """Attaches a device, which is detached when the test ends."""
        [attachment] = self.member.attach(self.server_id, f"{self.alias}:1", **options)
        self.addCleanup(self.member.detach, self.server_id, attachment["attachment_id"])
        return attachment


def _client(manager: clients.Manager) -> HotslotClient:
    return HotslotClient(
        manager.auth_provider, CONF.hotslot.catalog_type, CONF.identity.region,
        endpoint_type=CONF.hotslot.endpoint_type,
    )
