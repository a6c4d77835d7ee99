"""Requests over a unix socket."""

import socket
from typing import Any

import requests
from requests import adapters
from urllib3 import connection, connectionpool

#: The address of a service whose socket the adapter knows.
ENDPOINT = "http+unix://localhost"


class UnixAdapter(adapters.HTTPAdapter):
    """Sends requests to the socket at a path."""

    def __init__(self, path: str) -> None:
        class Connection(connection.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(self.timeout)
                try:
                    self.sock.connect(path)
                except OSError as error:
                    self.sock.close()
                    raise OSError(f"cannot connect to the socket {path}: {error.strerror}") from error

        self._pool = connectionpool.HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = Connection
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> connectionpool.HTTPConnectionPool:
        """Returns the connections to the socket."""
        return self._pool

    def request_url(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> str:
        """Returns the path and query of a request."""
        return str(request.path_url)
