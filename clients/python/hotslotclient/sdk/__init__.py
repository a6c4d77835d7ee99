"""hotslot in openstacksdk.

>>> conn = hotslotclient.sdk.connect(cloud="mycloud")
>>> [attachment.inner_address for attachment in conn.pci.attachments("web1")]

The service is found in the catalog under the type ``hotslot``. ``hotslot_endpoint_override`` of the cloud, or
``OS_HOTSLOT_ENDPOINT_OVERRIDE``, replaces the catalog's endpoint.

A cloud with ``vendor_hook: hotslotclient.sdk:register`` in ``clouds.yaml`` has ``conn.pci`` after a plain
``openstack.connect`` too.
"""

from typing import Any, cast

import openstack
from openstack import connection, service_description

from hotslotclient.sdk.proxy import Proxy

__all__ = ["Connection", "Proxy", "connect", "register"]


class Connection(connection.Connection):
    """The type of a connection that has the service."""

    pci: Proxy


def register(conn: connection.Connection) -> None:
    """Adds the service to a connection, as ``conn.pci`` and ``conn.hotslot``."""
    conn.add_service(service_description.ServiceDescription("hotslot", {"2": Proxy}, aliases=["pci"]))


def connect(**options: Any) -> Connection:
    """Returns a connection with ``conn.pci``. The options are those of :func:`openstack.connect`."""
    conn = openstack.connect(**options)
    register(conn)
    return cast("Connection", conn)
