"""``conn.pci``: the requests to the service."""

import time
import uuid
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote

import requests
from openstack import exceptions, proxy
from openstack.connection import Connection

from hotslotclient.sdk.attachment import Attachment
from hotslotclient.sdk.device import Device
from hotslotclient.sdk.hypervisor import Hypervisor, Server
from hotslotclient.sdk.rule import KINDS, Kind, Rule

#: Requests that can be repeated are sent again when the connection fails or the service is busy (503).
REPEATED: dict[str, Any] = {"connect_retries": 3, "status_code_retries": 3, "retriable_status_codes": [503]}


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _path_of(server_id: str, attachment_id: str | None = None, version: str = "v2.1") -> str:
    path = f"/{version}/servers/{quote(server_id, safe='')}/os-pci_attachments"
    return path if attachment_id is None else f"{path}/{quote(attachment_id, safe='')}"


class Proxy(proxy.Proxy):
    """The requests to hotslot.

    A server is given by its id, or by its name: the name that Nova has, when the catalog has Nova, or else the name of
    the libvirt domain. A refusal of the service raises :class:`openstack.exceptions.HttpException`, with the reason of
    the service in ``details``.
    """

    # Every path begins with the version, so the versions of the endpoint need not be discovered.
    skip_discovery = True

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        response = self.request(path, method, **options)
        exceptions.raise_from_response(response)
        return response

    def devices(self, **query: Any) -> Iterator[Device]:
        """Lists the devices that can be assigned.

        :param query: Values that the devices must have, such as ``vendor_id="8086"``, ``status="available"`` or
            ``extra_info={"rack": "r1"}``.
        """
        yield from self._list(Device, base_path="/v2.1/os-pci/detail", **query)

    def get_device(self, device_id: str | int) -> Device:
        """Returns the device with this number or UUID."""
        return self._get(Device, str(device_id))

    def find_device(self, name: str, host: str | None = None) -> Device:
        """Returns the device with this number, UUID or address in its host."""
        if ":" not in name:
            return self.get_device(name)
        found = list(self.devices(address=name, **({"host": host} if host else {})))
        if not found:
            raise exceptions.NotFoundException(f"no PCI device that can be assigned has the address {name}")
        if len(found) > 1:
            choices = ", ".join(f"{device.uuid} on {device.host}" for device in found)
            raise exceptions.DuplicateResource(f"several hosts have a device at {name}: {choices}; name its UUID")
        return found[0]

    def mark_device_cleaned(self, device_id: str | int) -> Device:
        """Records that a device with ``one_time_use`` has been cleaned, and can be assigned again."""
        path = f"{Device.base_path}/{quote(str(device_id), safe='')}/action"
        answer = self._ask("POST", path, json={"cleaned": None})
        return Device.existing(connection=self._get_connection(), **answer.json()["pci_device"])

    def servers(self, **query: Any) -> Iterator[Server]:
        """Lists the guests that the caller may use."""
        yield from self._list(Server, **query)

    def find_server(self, name: str) -> str:
        """Returns the id of the server with this id or name."""
        if _is_uuid(name):
            return name
        conn = cast("Connection", self._get_connection())
        if hasattr(conn.session.auth, "get_access") and conn.config.get_endpoint_from_catalog("compute"):
            found = conn.compute.find_server(name, ignore_missing=True)
            if found:
                return str(found.id)
        domains = [server for server in self.servers(name=name) if server.name == name]
        if not domains:
            raise exceptions.NotFoundException(f"server {name} not found among those that you may use")
        if len(domains) > 1:
            choices = ", ".join(str(server.id) for server in domains)
            raise exceptions.DuplicateResource(f"several servers have the name {name}: {choices}; name the id")
        return str(domains[0].id)

    def attachments(self, server: str | None = None, *, ended: bool = False, **query: Any) -> Iterator[Attachment]:
        """Lists the devices of a server, or of all servers that the caller may use.

        :param ended: Whether to list the attachments that have ended, with the reasons.
        :param query: Values that the attachments must have, such as ``alias="vf"``.
        """
        path = Attachment.base_path if server is None else _path_of(self.find_server(server))
        if ended:
            query["ended"] = "true"
        yield from self._list(Attachment, base_path=path, **query)

    def get_attachment(self, server: str, attachment_id: str) -> Attachment:
        """Returns an attachment of a server that has not ended."""
        answer = self._ask("GET", _path_of(self.find_server(server), attachment_id)).json()
        return self._attachment(answer["pciAttachment"])

    def _attachment(self, row: dict[str, Any]) -> Attachment:
        return Attachment.existing(connection=self._get_connection(), **row)

    def _attach(self, server: str, alias: str | None, options: dict[str, Any]) -> dict[str, Any]:
        if alias is not None:
            alias = ",".join(part if ":" in part else f"{part}:1" for part in alias.split(","))
        # The key makes it safe to send the request again: nothing is attached twice.
        answer: dict[str, Any] = self._ask(
            "POST", _path_of(self.find_server(server)),
            json={"pciAttachment": {"pci_passthrough:alias": alias, **options}},
            headers={"Idempotency-Key": str(uuid.uuid4())}, **REPEATED,
        ).json()
        return answer

    def attach(self, server: str, alias: str | None = None, **options: Any) -> list[Attachment]:
        """Attaches devices to a server, all of them or none, and returns the attachments.

        :param alias: The aliases, each with the number of devices if it is not 1, as ``"vf:2,gpu"``.
        :param options: ``flavor`` in place of the alias; ``addresses``, a list of devices in the host of the server;
            ``persistent`` (true), ``whole_group``, ``numa_policy``; for VFs that are virtual GPUs
            ``vgpu_type``; for VFs of NICs ``mac_address``, ``vlan``, ``physical_network``, ``trusted``,
            ``spoof_check``, ``link_state`` (``auto``, ``enable`` or ``disable``), ``min_tx_rate`` and ``max_tx_rate``,
            in Mbit/s.
        """
        return [self._attachment(row) for row in self._attach(server, alias, options)["pci_devices"]]

    def try_attach(self, server: str, alias: str | None = None, **options: Any) -> dict[str, Any]:
        """Returns what an attach with these arguments would do; changes nothing.

        The keys of the answer are ``would_attach``, ``pci_devices`` and ``checks``.
        """
        verdict: dict[str, Any] = self._attach(server, alias, {**options, "dry_run": True})["dry_run"]
        return verdict

    def wait_for_attachment(
        self, server: str, attachment_id: str, timeout: float = 60, interval: float = 1
    ) -> Attachment:
        """Waits until the guest has confirmed the address of a device, and returns the attachment.

        :param timeout: The longest time to wait, in seconds.
        :raises ResourceFailure: The attachment has ended, or ends.
        :raises ResourceTimeout: The guest has not confirmed the address. The device stays attached.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                attachment = self.get_attachment(server, attachment_id)
            except exceptions.NotFoundException as error:
                raise exceptions.ResourceFailure(f"attachment {attachment_id} has ended") from error
            if attachment.status not in ("attaching", "attached"):
                raise exceptions.ResourceFailure(f"attachment {attachment_id} is {attachment.status}")
            if attachment.inner_address_source == "verified":
                return attachment
            if time.monotonic() >= end:
                raise exceptions.ResourceTimeout(
                    f"attachment {attachment_id} is {attachment.status}, but the guest has not confirmed the device "
                    f"within {timeout:.3g} s; a guest can confirm it while it runs and its agent is connected"
                )
            time.sleep(interval)

    def detach(
        self, server: str, attachment_id: str, *, wait: bool = True, timeout: float | None = None, force: bool = False
    ) -> None:
        """Detaches a device from its server.

        :param wait: Whether to return only when the device is gone. A guest that keeps the device is a
            :class:`openstack.exceptions.ConflictException`. Without it, the service continues after the method has
            returned.
        :param timeout: How long the guest is asked to release the device, in seconds; by default what the service is
            configured to.
        :param force: Whether to override a policy against detaching, and to take the device out of the definition even
            if the guest refuses.
        """
        query: dict[str, str] = {"force": "true"} if force else {}
        if timeout is not None:
            query["timeout"] = f"{round(timeout * 1000)}ms"
        # Version 2 responds when the device is gone, and version 2.1 at once.
        path = _path_of(self.find_server(server), attachment_id, version="v2/-" if wait else "v2.1")
        self._ask("DELETE", path, params=query, **REPEATED)

    def rules(self, kind: Kind) -> Iterator[Rule]:
        """Lists the rules of a kind, in their order."""
        yield from self._list(KINDS[kind])

    def get_rule(self, kind: Kind, rule_id: str) -> Rule:
        """Returns a rule."""
        return self._get(KINDS[kind], rule_id)

    def _rule(self, kind: Kind, answer: requests.Response) -> Rule:
        return KINDS[kind].existing(connection=self._get_connection(), **answer.json()[kind])

    def create_rule(self, kind: Kind, entry: dict[str, Any]) -> Rule:
        """Creates a rule. It takes effect at once.

        :param entry: The entry in the syntax of ``nova.conf``.
        """
        return self._rule(kind, self._ask("POST", KINDS[kind].base_path, json={kind: entry}))

    def replace_rule(self, kind: Kind, rule_id: str, entry: dict[str, Any], *, force: bool = False) -> Rule:
        """Replaces the entry of a rule.

        :param force: Whether to replace it even if devices in use depend on it.
        """
        query = {"force": "true"} if force else {}
        return self._rule(kind, self._ask("PUT", self._path_of_rule(kind, rule_id), params=query, json={kind: entry}))

    def delete_rule(self, kind: Kind, rule_id: str, *, force: bool = False) -> None:
        """Deletes a rule.

        :param force: Whether to delete it even if devices in use depend on it.
        """
        self._ask("DELETE", self._path_of_rule(kind, rule_id), params={"force": "true"} if force else {})

    @staticmethod
    def _path_of_rule(kind: Kind, rule_id: str) -> str:
        return f"{KINDS[kind].base_path}/{quote(rule_id, safe='')}"

    def hypervisors(self) -> Iterator[Hypervisor]:
        """Lists the hosts with the numbers of their free devices."""
        yield from self._list(Hypervisor)
