"""The life of a server: how it ends, and what it still answers then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

import httpx
import pytest
from starlette.applications import Starlette

from condconv_serve.errors import ConfigurationError
from condconv_serve.http.server import REPEAT_SECONDS, DrainingServer, config, is_local, listen, url
from tests.contract.until import until
from tests.forked import ForkedServer, forker

PATIENCE = 60.0


class Server:
    def __init__(self, process: ForkedServer, output: TextIO) -> None:
        self.process, self._output = process, output
        self.url = self.line()

    def line(self) -> str:
        return self._output.readline().strip()


@contextlib.contextmanager
def serving(
    drain_delay: float, *, time_for_answers: float = PATIENCE, repeat: float = REPEAT_SECONDS, given: str = os.devnull
) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as directory:
        os.mkfifo(output := Path(directory) / "output")
        process = forker("tests.unit.http.draining_server").start(
            *map(str, (drain_delay, time_for_answers, repeat)), environment=os.environ, output=output, given=given
        )
        try:
            with output.open() as lines:
                server = Server(process, lines)
                assert httpx.get(f"{server.url}/ok", trust_env=False, timeout=PATIENCE).text == "ok"
                yield server
        finally:
            process.kill()
            process.wait(PATIENCE)


async def test_what_a_signal_does_belongs_to_no_request() -> None:
    """The interpreter calls its handler from wherever it is, such as the middle of a request."""
    request, seen = ContextVar("request", default="none"), list[str]()
    server = DrainingServer(
        config(Starlette(), http=asyncio.Protocol),
        on_drain=lambda: seen.append(request.get()),
        drain_delay=0,
        shutdown_timeout=1,
    )
    server._loop = asyncio.get_running_loop()
    request.set("one")
    server.handle_exit(signal.SIGTERM, None)
    await until(lambda: seen)
    assert seen == ["none"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_the_signal_is_followed_by_a_time_in_which_it_still_serves(number: signal.Signals) -> None:
    with serving(drain_delay=PATIENCE) as server:
        server.process.send_signal(number)
        assert server.line() == "draining"
        assert httpx.get(f"{server.url}/ok", trust_env=False, timeout=PATIENCE).text == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_after_that_time_it_ends(number: signal.Signals) -> None:
    with serving(drain_delay=0.5) as server:
        server.process.send_signal(number)
        assert (server.line(), server.line()) == ("draining", "ended")
        assert server.process.wait(PATIENCE) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/ok", trust_env=False, timeout=PATIENCE)


def test_sigint_ends_it_once_what_it_has_is_answered() -> None:
    with serving(drain_delay=60) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, f"{server.url}/slow", trust_env=False, timeout=PATIENCE)
        assert server.line() == "asked"
        server.process.send_signal(signal.SIGINT)
        assert waiting.result(PATIENCE).text == "slow"
        assert (server.line(), server.line()) == ("draining", "ended")
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(second: signal.Signals) -> None:
    with serving(drain_delay=60) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "draining"
        if second == signal.SIGTERM:
            time.sleep(REPEAT_SECONDS)
        server.process.send_signal(second)
        assert server.process.wait(PATIENCE) == 128 + second
        assert server.line() == f"{second.name} again: ending now, even if requests are unanswered"
        assert server.line() == ""


def test_the_same_signal_within_a_second_is_the_first_one() -> None:
    """A shell and a process manager may both pass it on."""
    with serving(drain_delay=2, repeat=PATIENCE) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "draining"
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "ended"
        assert server.process.wait(PATIENCE) == 0


def test_signals_that_mean_nothing_here_end_nothing() -> None:
    with serving(drain_delay=0) as server:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            server.process.send_signal(number)
            assert httpx.get(f"{server.url}/ok", trust_env=False, timeout=PATIENCE).text == "ok"
        server.process.send_signal(signal.SIGHUP)
        assert server.line() == "hangup"
        server.process.terminate()
        assert (server.line(), server.line()) == ("draining", "ended")
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("gone", [True, False])
def test_the_end_of_its_terminal_is_its_own(gone: bool) -> None:
    ours, theirs = os.openpty()
    with serving(drain_delay=0, given=os.ttyname(theirs)) as server:
        os.close(theirs)
        if gone:
            os.close(ours)
        server.process.send_signal(signal.SIGHUP)
        if gone:
            assert (server.line(), server.line()) == ("draining", "ended")
            assert server.process.wait(PATIENCE) == 0
        else:
            assert server.line() == "hangup"
            os.close(ours)


@pytest.mark.slow
def test_a_body_that_is_incomplete_at_the_end_is_answered() -> None:
    with serving(drain_delay=0, time_for_answers=8) as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0), timeout=PATIENCE) as connected:
            connected.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123")
            time.sleep(0.2)
            server.process.terminate()
            received = b""
            while more := connected.recv(65536):
                received += more
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"draining" in received
        assert b"connection: close" in received.lower()
        assert server.process.wait(PATIENCE) == 0


def test_headers_that_are_incomplete_at_the_end_are_answered() -> None:
    with serving(drain_delay=0) as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0), timeout=PATIENCE) as connected:
            connected.sendall(b"POST /echo HTTP/1.1\r\nHost: ")
            time.sleep(0.2)
            server.process.terminate()
            received = b""
            while more := connected.recv(65536):
                received += more
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"draining" in received
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_both_protocols() -> None:
    with listen("::", 0) as listener:
        port = listener.getsockname()[1]
        assert (url(listener), is_local(listener)) == (f"http://[::]:{port}", False)
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=10).close()


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert (url(taken), is_local(taken)) == (f"http://127.0.0.1:{port}", True)
        with pytest.raises(ConfigurationError, match=rf"^Can't listen on 127\.0\.0\.1:{port}: "):
            listen("127.0.0.1", port)
