"""The server: it listens, serves, and ends without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from condconv_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)


def _signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of these signals that the system has; Windows has few."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


ENDING = _signals("SIGINT", "SIGTERM", "SIGQUIT")
HANGUP = _signals("SIGHUP")
IGNORED = _signals("SIGUSR1", "SIGUSR2")
"""Others use them to open log files anew, say. They would end the process with no word and no answers."""

REPEAT_SECONDS = 1.0
"""The same signal within this time is the first one once more: a shell and a process manager both pass it on."""

LEAST_SECONDS = 0.1
"""What is open gets this long at least. With no time at all, uvicorn reports an error even if nothing is open."""

LAST_ANSWERS_SECONDS = 1.0
"""How long before the end of all waiting what can't be finished is answered."""


class DrainingServer(uvicorn.Server):
    """Ends in steps at the first signal, and at once at the second.

    After SIGTERM or SIGQUIT it is not ready, but serves for `drain_delay` seconds, so that load balancers notice. Then,
    or at once after SIGINT, it takes no new connections, and closes each open one when its request is answered.

    At SIGHUP it looks again at what it was started with, unless its terminal has gone: then it ends.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_drain: Callable[[], None],
        drain_delay: float,
        shutdown_timeout: float,
        on_hangup: Callable[[], None] = lambda: None,
        on_stop_listening: Callable[[], None] = lambda: None,
        on_last_answers: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            config: of uvicorn.
            on_drain: called at the first signal.
            drain_delay: seconds from SIGTERM to the end of listening, `shutdown_timeout` at most.
            shutdown_timeout: seconds from SIGTERM to the end of what is still open.
            on_hangup: called on the loop at SIGHUP.
            on_stop_listening: called on the loop when no more connections are taken.
            on_last_answers: called on the loop when the time for open requests is all but over: what waits for a client
                must be answered now.
        """
        super().__init__(config)
        self._on_drain = on_drain
        self._drain_delay = min(drain_delay, shutdown_timeout)
        # uvicorn asks for whole seconds only in its annotation.
        config.timeout_graceful_shutdown = max(shutdown_timeout - self._drain_delay, LEAST_SECONDS)  # type: ignore[assignment]
        self._on_hangup = on_hangup
        self._on_stop_listening = on_stop_listening
        self._on_last_answers = on_last_answers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._first_signal: tuple[int, float] | None = None
        self._on_terminal = sys.stdin is not None and sys.stdin.isatty()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it."""
        self.take_signals()
        super().run(sockets)

    def take_signals(self) -> None:
        """Answer to signals from now on; called on the main thread."""
        for number in ENDING:  # before uvicorn does, so that no signal is missed
            signal.signal(number, self.handle_exit)
        for number in IGNORED:
            signal.signal(number, self._ignore)
        for number in HANGUP:
            signal.signal(number, self._hang_up)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on the running loop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, but take the connections that clients have already opened; otherwise they would be reset."""
        self._on_stop_listening()
        time_left = self.config.timeout_graceful_shutdown
        if time_left is not None:
            before = min(LAST_ANSWERS_SECONDS, time_left / 2)
            asyncio.get_running_loop().call_later(time_left - before, self._on_last_answers)
        queues = [listener.dup() for listener in sockets or ()]
        for server in self.servers:
            server.close()
        for queue in queues:
            await self._take_all(queue)
        await super().shutdown(sockets)

    async def _take_all(self, queue: socket.socket) -> None:
        taken = []
        queue.setblocking(False)
        with queue, contextlib.suppress(OSError):
            while True:
                taken.append(queue.accept()[0])
        for connection in taken:
            await asyncio.get_running_loop().connect_accepted_socket(self._new_protocol, connection)

    def _new_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal that ends the server; called by the interpreter."""
        name, now = signal.Signals(sig).name, time.monotonic()
        if self._first_signal is not None:
            first, at = self._first_signal
            if sig == first and now - at < REPEAT_SECONDS:
                return
            logger.warning("%s again: ending now, even if requests are unanswered", name)
            logging.shutdown()
            os._exit(128 + sig)
        self._first_signal = sig, now
        self._soon(self._end_by, sig)

    def end_by(self, sig: int) -> None:
        """End as a signal asks for, unless one has come already: another process may pass on what this one has got."""
        if self._first_signal is None:
            self.handle_exit(sig, None)

    def _soon(self, do: Callable[..., object], *arguments: Any) -> None:
        """Do it on the loop, if there is one: a signal may have come while the main thread holds a lock."""
        if self._loop is None or self._loop.is_closed():
            do(*arguments)
        else:
            # The interpreter calls from wherever it is, such as a request, whose context is not that of a signal.
            self._loop.call_soon_threadsafe(do, *arguments, context=self._context)

    def _end_by(self, sig: int) -> None:
        self._on_drain()
        delay = self._drain_delay if sig != signal.SIGINT and self.started else 0.0
        if self._loop is None or delay <= 0:
            self.stop()
        else:
            logger.info("%s: no longer ready; listening ends in %g s", signal.Signals(sig).name, delay)
            self._loop.call_later(delay, self.stop)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if self._on_terminal and not sys.stdin.isatty():  # as it is no longer one, it has gone
            self.handle_exit(sig, frame)
        elif self._loop is not None and self._first_signal is None:
            self._soon(self._on_hangup)

    def _ignore(self, sig: int, _: FrameType | None) -> None:
        self._soon(logger.info, "%s is ignored", signal.Signals(sig).name)

    def stop(self) -> None:
        """Stop listening, answer the open requests, and return from `run`."""
        self.should_exit = True


class _SideServer(uvicorn.Server):
    """A second server. The main one alone handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def config(app: ASGIApp, http: type[asyncio.Protocol], **options: Any) -> uvicorn.Config:
    """Uvicorn's configuration for our servers: no log of its own, no `Server` header."""
    return uvicorn.Config(app, http=http, ws="none", log_config=None, access_log=False, server_header=False, **options)


@contextlib.asynccontextmanager
async def serving_beside(
    app: ASGIApp, listener: socket.socket | None, http: type[asyncio.Protocol]
) -> AsyncGenerator[None, None]:
    """Serve an app on a listener, if there is one, for as long as the context lasts."""
    if listener is None:
        yield
        return
    server = _SideServer(config(app, http, lifespan="off", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await running


def url(listener: socket.socket) -> str:
    """Where a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """Open a port; at `::` for IPv4 as well, whatever the system's default is.

    Raises:
        ConfigurationError: the port can't be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigurationError(f"Can't listen on {host}:{port}: {error.strerror}.") from error
