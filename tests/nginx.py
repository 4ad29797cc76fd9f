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
def nginx(content: str, listeners: Sequence[socket.socket] = ()) -> Iterator[Path]:
    """Run nginx with the content of its `http` block, which may name the addresses of sockets that listen already.

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
        files = [listener.fileno() for listener in listeners]
        inherited = {"NGINX": "".join(f"{number};" for number in files)} if files else {}
        process = subprocess.Popen(
            ["nginx", "-c", file, "-e", log],
            env=ENVIRONMENT | inherited,
            pass_fds=files,
            stderr=subprocess.DEVNULL,
        )
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
    with contextlib.ExitStack() as opened:  # by us, so that nobody else takes a port before nginx does
        listeners = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in servers]
        addresses = ["{}:{}".format(*listener.getsockname()) for listener in listeners]
        blocks = [f"server {{ listen {address}; {s} }}" for address, s in zip(addresses, servers, strict=True)]
        with nginx("\n    ".join(blocks), listeners):
            yield [f"http://{address}" for address in addresses]
