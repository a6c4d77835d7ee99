"""hotslot in openstacksdk.

>>> conn = hotslotclient.sdk.connect(cloud="mycloud")
>>> [attachment.inner_address for attachment in conn.pci.attachments("web1")]

The service is found in the catalog under the type ``hotslot``. ``hotslot_endpoint_override`` of the cloud, or
``OS_HOTSLOT_ENDPOINT_OVERRIDE``, replaces the catalog's endpoint.

A service on the same machine needs no token at its unix socket, where it knows its local users:

>>> conn = hotslotclient.sdk.connect(socket="/run/hotslot/api.sock")

A cloud with ``vendor_hook: hotslotclient.sdk:register`` in ``clouds.yaml`` has ``conn.pci`` after a plain
``openstack.connect`` too.
"""

from typing import Any, cast

import openstack
from openstack import connection, service_description

from hotslotclient.sdk import unix
from hotslotclient.sdk.proxy import Proxy

__all__ = ["Connection", "Proxy", "connect", "register"]


class Connection(connection.Connection):
    """The type of a connection that has the service."""

    pci: Proxy


def register(conn: connection.Connection) -> None:
    """Adds the service to a connection, as ``conn.pci`` and ``conn.hotslot``."""
    conn.add_service(service_description.ServiceDescription("hotslot", {"2": Proxy}, aliases=["pci"]))


def connect(socket: str | None = None, **options: Any) -> Connection:
    """Returns a connection with ``conn.pci``.

    :param socket: The path of the unix socket of a service on the same machine, in place of a cloud.
    :param options: Those of :func:`openstack.connect`.
    """
    if socket is not None:
        options = {"auth_type": "none", "endpoint": unix.ENDPOINT, "load_yaml_config": False, "load_envvars": False}
    conn = openstack.connect(**options)
    if socket is not None:
        conn.session.session.mount(unix.ENDPOINT, unix.UnixAdapter(socket))
    register(conn)
    return cast("Connection", conn)
