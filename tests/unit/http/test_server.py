"""The life of a server: how it ends, and what it still answers then."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.http.server import is_local, listen, url


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def serving(drain_delay: float) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.unit.http.draining_server", str(drain_delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        try:
            server = Server(process)
            assert httpx.get(f"{server.url}/ok", trust_env=False).text == "ok"
            yield server
        finally:
            process.kill()


def test_sigterm_is_followed_by_a_time_in_which_it_still_serves() -> None:
    with serving(drain_delay=1.0) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "draining"
        assert httpx.get(f"{server.url}/ok", trust_env=False).text == "ok"
        assert server.line() == "ended"
        assert server.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/ok", trust_env=False)


def test_sigint_ends_it_once_what_it_has_is_answered() -> None:
    with serving(drain_delay=60) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{server.url}/slow", trust_env=False)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        assert waiting.result(10).text == "slow"
        assert (server.line(), server.line()) == ("draining", "ended")
        assert server.process.wait(10) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with serving(drain_delay=60) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "draining"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
        assert server.line() == ""


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert (url(taken), is_local(taken)) == (f"http://127.0.0.1:{port}", True)
        with pytest.raises(ConfigurationError, match=rf"^Can't listen on 127\.0\.0\.1:{port}: "):
            listen("127.0.0.1", port)
