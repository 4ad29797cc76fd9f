"""An nginx in front of a server, as most have it: with an upstream that it may take for dead."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.nginx import nginx

# Twice the same, since a lone server is never taken for dead.
UPSTREAM = "client_max_body_size 100m; upstream service {{ server {upstream}; server {upstream}; }}"
SERVER = "server {{ listen unix:DIRECTORY/{name}; location / {{ proxy_pass http://service; {directives} }} }}"


class Proxy:
    """What listens in `directory`, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def connect(self, name: str) -> http.client.HTTPConnection:
        """A client of the nginx of that name."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self._directory / name))
        return connection

    @property
    def errors(self) -> str:
        """What nginx has to say about its upstream."""
        return (self._directory / "log").read_text()


@contextmanager
def proxy(upstream: tuple[str, int], servers: Mapping[str, str]) -> Iterator[Proxy]:
    """Run nginx in front of an address, with the directives of each server's location by its name."""
    blocks = [SERVER.format(name=name, directives=directives) for name, directives in servers.items()]
    with nginx("\n    ".join([UPSTREAM.format(upstream=f"{upstream[0]}:{upstream[1]}"), *blocks])) as directory:
        yield Proxy(directory)
