"""A real nginx in front of servers."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.debian import need
from tests.e2e.server import wait_for

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {servers}
}}
"""


@contextlib.contextmanager
def nginx(*servers: str, before: str = "") -> Iterator[Sequence[str]]:
    """Run nginx with the content of a `server` block for each port; all that isn't given is as nginx has it by default.

    Args:
        servers: directives such as `location / { proxy_pass http://127.0.0.1:8000; }`.
        before: directives of the `http` block, such as an `upstream`.

    Yields:
        The URL of each server.
    """
    need({"nginx": "nginx-light"})
    ports = [_free_port() for _ in servers]
    blocks = [f"server {{ listen 127.0.0.1:{port}; {s} }}" for port, s in zip(ports, servers, strict=True)]
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # workers of a root's nginx are nobody
        configuration = directory / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory, servers="\n".join([before, *blocks])))
        process = subprocess.Popen(
            ["nginx", "-p", name, "-c", configuration, "-e", directory / "error.log"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: process.poll() is not None or all(map(_listens, ports)), seconds=20)
            assert process.poll() is None, (directory / "error.log").read_text()
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            process.terminate()
            process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
