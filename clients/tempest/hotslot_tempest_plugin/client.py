"""The requests of the tests."""

import json
from typing import Any
from urllib.parse import urlencode

from tempest.lib.common import rest_client

Body = rest_client.ResponseBody


class HotslotClient(rest_client.RestClient):
    """Requests to hotslot. A response of 400 or more is an exception of :mod:`tempest.lib.exceptions`."""

    def ask(
        self, method: str, path: str, body: Any = None, expected: int = 200, headers: dict[str, str] | None = None,
        query: dict[str, Any] | None = None,
    ) -> Body:
        """Sends a request whose response must have this status, and returns the body of the response."""
        path += f"?{urlencode(query)}" if query else ""
        text = None if body is None else json.dumps(body)
        response, answer = self.request(method, path, extra_headers=True, headers=headers, body=text)
        self.expected_success(expected, response.status)
        return Body(response, json.loads(answer) if answer else None)

    def devices(self, detail: bool = False, **query: Any) -> list[dict[str, Any]]:
        """Lists the devices that can be assigned."""
        path = "/v2.1/os-pci/detail" if detail else "/v2.1/os-pci"
        rows: list[dict[str, Any]] = self.ask("GET", path, query=query)["pci_devices"]
        return rows

    def attach(
        self, server_id: str, alias: str, headers: dict[str, str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Attaches devices; the alias has the number of devices, as ``a1:1``."""
        body = {"pciAttachment": {"pci_passthrough:alias": alias, **options}}
        answer = self.ask("POST", f"/v2.1/servers/{server_id}/os-pci_attachments", body, headers=headers)
        rows: list[dict[str, Any]] = answer["pci_devices"]
        return rows

    def attachments(self, server_id: str, **query: Any) -> list[dict[str, Any]]:
        """Lists the devices of a server."""
        answer = self.ask("GET", f"/v2.1/servers/{server_id}/os-pci_attachments", query=query)
        rows: list[dict[str, Any]] = answer["pciAttachment"]
        return rows

    def detach(self, server_id: str, attachment_id: str) -> None:
        """Detaches a device, and returns when it is gone."""
        self.ask("DELETE", f"/v2/-/servers/{server_id}/os-pci_attachments/{attachment_id}")
