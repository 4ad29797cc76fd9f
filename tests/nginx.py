"""A real nginx, with its own defaults but for what a test sets."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.debian import ENVIRONMENT, need
from tests.e2e.server import ROOT, wait_for

_CONFIGURATION = """
daemon off;
{user}
pid {directory}/pid;
error_log {directory}/log error;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {content}
}}
"""

UNDER_A_PREFIX = [
    example
    for example in re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), flags=re.S)
    if "location /classify/" in example
]
"""The examples of docs/operations.md for a path prefix: one that passes it on, one that takes it off."""


@contextlib.contextmanager
def nginx(content: str) -> Iterator[Path]:
    """Run nginx with the content of its `http` block.

    `DIRECTORY` in it becomes the directory that is yielded; nginx's complaints are in the file `log` there. Skips the
    test if there is no nginx.
    """
    need({"nginx": "nginx"})
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:  # short enough for a socket's name
        directory = Path(name)
        file, log = directory / "nginx.conf", directory / "log"
        user = "user root;" if os.geteuid() == 0 else ""  # its workers must reach the directory
        content = content.replace("DIRECTORY", name)
        file.write_text(_CONFIGURATION.format(user=user, directory=name, content=content))
        process = subprocess.Popen(["nginx", "-c", file, "-e", log], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: process.poll() is not None or (directory / "pid").exists())
            assert process.poll() is None, log.read_text()
            yield directory
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def nginx_servers(*servers: str) -> Iterator[Sequence[str]]:
    """Run nginx with the content of a `server` block for each of its ports, and yield their URLs."""
    ports = [_free_port() for _ in servers]
    blocks = [f"server {{ listen 127.0.0.1:{port}; {s} }}" for port, s in zip(ports, servers, strict=True)]
    with nginx("\n    ".join(blocks)):
        yield [f"http://127.0.0.1:{port}" for port in ports]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
