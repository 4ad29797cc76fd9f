"""A real nginx in front of a server, with its own defaults but for what a test sets."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.debian import ENVIRONMENT, need
from tests.e2e.server import wait_for

CONFIG = """
daemon off;
{user}
pid {directory}/pid;
error_log {directory}/log error;
events {{}}
http {{
    access_log off;
    client_max_body_size 100m;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    # Twice the same, since a lone server is never taken for dead.
    upstream service {{ server {upstream}; server {upstream}; }}
    {servers}
}}
"""
SERVER = "server {{ listen unix:{directory}/{name}; location / {{ proxy_pass http://service; {directives} }} }}"


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
    need({"nginx": "nginx"})
    with tempfile.TemporaryDirectory(prefix="nginx-") as directory:  # short enough for a socket's name
        listening = [SERVER.format(directory=directory, name=name, directives=d) for name, d in servers.items()]
        file = Path(directory) / "nginx.conf"
        file.write_text(
            CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                directory=directory,
                upstream=f"{upstream[0]}:{upstream[1]}",
                servers="\n    ".join(listening),
            )
        )
        log = Path(directory) / "log"
        process = subprocess.Popen(["nginx", "-c", file, "-e", log], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: process.poll() is not None or (Path(directory) / "pid").exists())
            assert process.poll() is None, log.read_text()
            yield Proxy(Path(directory))
        finally:
            process.terminate()
            process.wait(30)
