"""A log that nobody reads: the server goes on, and says how much was lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from condconv_serve.telemetry.log_thread import MAX_LINES
from tests.e2e.server import PATIENCE, ROOT, RunningServer, command, environment, new_client, wait_for

REQUEST = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
LOST = "condconv_log_lines_lost_total"


def listening_port(process_id: int) -> int | None:
    """The port that a process listens on, since nobody can read where it says so; None if it doesn't yet."""
    process = Path(f"/proc/{process_id}")
    held = set()
    with contextlib.suppress(OSError):  # files come and go
        for link in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                held.add(os.readlink(link))
        for line in (process / "net" / "tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                return int(fields[1].partition(":")[2], 16)
    return None


@contextlib.contextmanager
def logging_to(stderr: int | None, log_file: Path, **options: object) -> Iterator[RunningServer]:
    """A server whose standard error is somebody else's; None closes it."""
    arguments = command("--port", "0", real=False)
    if stderr is None:
        arguments = ["sh", "-c", 'exec "$@" 2>&-', "sh", *arguments]
    settings = environment(drain_delay=0, engine="tensorflow", **options)
    with subprocess.Popen(arguments, env=settings, cwd=ROOT, stderr=stderr) as process:
        try:
            wait_for(lambda: process.poll() is not None or listening_port(process.pid) is not None)
            port = listening_port(process.pid)
            assert port is not None, "the server has ended"
            server = RunningServer(f"http://127.0.0.1:{port}", log_file, process_id=process.pid)
            with server.client:
                wait_for(server.is_ready)
                yield server
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def ask(server: RunningServer, requests: int) -> None:
    """Ask for what isn't there, each of which the log has a line about."""
    with socket.create_connection(server.address, timeout=PATIENCE) as connection:
        for _ in range(requests // 100):
            connection.sendall(REQUEST * 100)
            received = b""
            while received.count(b"HTTP/1.1 404") < 100 or not received.endswith(b"}"):
                received += connection.recv(65536)


def test_a_reader_who_stalls_stops_no_route(tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with logging_to(writer, fifo) as server:
        os.close(writer)
        ask(server, MAX_LINES + 500)
        assert server.client.get("/livez").status_code == 200
        assert server.metrics()[LOST] > 0
        text = b""

        def told() -> bool:
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                text += os.read(reader, 1 << 20)
            with new_client(server.url) as client:  # of any process, so in the end of that which has lost some
                client.get("/nowhere")  # whose line tells
            return b"lines of the log were dropped" in text

        wait_for(told)
        assert re.search(rb"WARNING +\d+ lines of the log were dropped, since it was not read", text)
    os.close(reader)


def test_a_reader_who_goes_away_ends_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with logging_to(writer, tmp_path) as server:
        os.close(writer)
        os.close(reader)
        ask(server, 100)
        assert server.is_ready()
        wait_for(lambda: server.metrics()[LOST] >= 100)


def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    with logging_to(None, tmp_path) as server:
        ask(server, 100)
        assert server.is_ready()
