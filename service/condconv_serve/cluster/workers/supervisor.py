"""The process that starts all others of a server with workers: it opens the ports and watches, and serves nobody.

It needs little memory, and nothing in it computes, so nothing that fails in the others takes it along.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from condconv_serve.cluster.workers import spawning
from condconv_serve.cluster.workers.connection_counts import ConnectionCounts
from condconv_serve.cluster.workers.directories import directory_for_metrics
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.orders import (
    Alive,
    Connect,
    Disconnected,
    Drain,
    Failed,
    LookAgain,
    Started,
    StartEngine,
    StartFront,
    Stop,
)
from condconv_serve.cluster.workers.spawning import Child, Spawn
from condconv_serve.errors import ConfigurationError
from condconv_serve.http.server import ENDING, HANGUP, IGNORED, REPEAT_SECONDS, is_local, listen
from condconv_serve.key_loading import load_keys
from condconv_serve.settings import Settings
from condconv_serve.startup_log import log_ports
from condconv_serve.telemetry.front_files import FrontFiles

Role = Literal["engine", "front"]
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
"""Seconds before a child that has died is started again: they double each time, unless it lived for a minute."""
_LONG_LIFE = 60.0
RECONNECT_PAUSE = 1.0
"""Seconds before a front is connected anew with an engine process that lives. If that is just dying, it has ended."""
_WATCH_SECONDS = 1.0
"""How often it is looked for children that hang."""
_LAST_SECONDS = 5.0
"""How long children may take beyond the time for a shutdown; after that they are killed."""
logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True, kw_only=True)
class _Member:
    """One child, through all its lives."""

    role: Role
    number: int = 0
    child: Child | None = None
    link: Link | None = None
    started_at: float = 0.0
    heard_at: float | None = None
    serves: bool = False
    pause: float = FIRST_PAUSE
    restart: asyncio.TimerHandle | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Its name in the log."""
        return "the engine process" if self.role == "engine" else f"front {self.number}"


def supervise(settings: Settings, *, fronts: int) -> None:
    """Serve with one engine process and several fronts until a signal ends it.

    Args:
        settings: what to serve and how.
        fronts: how many processes speak HTTP and gRPC.

    Raises:
        BundleError, ConfigurationError: the models or the settings can't be used.
    """
    if not hasattr(socket, "send_fds"):
        raise ConfigurationError("More than one worker needs Linux or macOS; set CONDCONV_WORKERS to 1.")
    keys = load_keys(settings)
    listener = listen(settings.host, settings.port)
    probes = None if settings.metrics_port is None else listen(settings.host, settings.metrics_port)
    settings, grpc_port = _with_grpc_port(settings)

    def say_where() -> None:
        log_ports(listener, probes, keys)
        if settings.grpc_port is not None:
            host = settings.host
            logger.info("gRPC on %s:%d", f"[{host}]" if ":" in host else host, settings.grpc_port)

    with directory_for_metrics() as metrics:
        ports = Ports(listener, probes)
        supervisor = Supervisor(settings, fronts=fronts, ports=ports, metrics=metrics, spawn=spawning.spawn)
        asyncio.run(supervisor.run(say_where))
    if grpc_port is not None:
        grpc_port.close()
    if supervisor.failure is not None:
        raise supervisor.failure


def _with_grpc_port(settings: Settings) -> tuple[Settings, socket.socket | None]:
    """The settings with a port for gRPC that all fronts can open, and a socket that holds it for them."""
    if settings.grpc_port is None:
        return settings, None
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port).close()  # others who listen there would get some of the calls
    held = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if settings.host == "::" and socket.has_dualstack_ipv6():
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind((settings.host, settings.grpc_port))
    except OSError as error:
        held.close()
        raise ConfigurationError(f"Can't listen on {settings.host}:{settings.grpc_port}: {error.strerror}.") from error
    return settings.model_copy(update={"grpc_port": held.getsockname()[1]}), held


class Ports(NamedTuple):
    """What fronts listen on: the main port, and that of metrics and probes, if it is another one."""

    main: socket.socket
    probes: socket.socket | None


class Supervisor:
    """Keeps one engine process and some fronts alive, until a signal ends all of them in order.

    Attributes:
        failure: why the server could not even start.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        fronts: int,
        ports: Ports,
        metrics: Path,
        spawn: Spawn,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            settings: what to serve and how.
            fronts: how many.
            ports: where fronts listen.
            metrics: directory where fronts count.
            spawn: starts a child.
        """
        self._settings = settings
        self._ports = ports
        self._metrics = metrics
        self._front_files = FrontFiles(metrics)
        self._connections = ConnectionCounts(metrics, fronts=fronts)
        self._spawn = spawn
        self._engine = _Member(role="engine")
        self._fronts = [_Member(role="front", number=number) for number in range(1, fronts + 1)]
        self._ended = asyncio.Event()
        self._signal: tuple[int, float] | None = None
        self._on_terminal = sys.stdin is not None and sys.stdin.isatty()
        self.failure: Exception | None = None

    async def run(self, on_signals_taken: Callable[[], None] = lambda: None) -> None:
        """Start all, and come back when all have ended; the function is called once signals end all in order."""
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._end_by, number)
        for number in HANGUP:
            loop.add_signal_handler(number, self._hang_up)
        for number in IGNORED:
            loop.add_signal_handler(number, logger.info, "%s is ignored", signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGCHLD, self._look_after_children)
        if self._settings.worker_timeout:
            self._watch(loop.time())
        on_signals_taken()
        try:
            for member in self._members:
                self._start(member)
            await self._ended.wait()
        finally:
            self._kill()

    @property
    def _members(self) -> Sequence[_Member]:
        return self._engine, *self._fronts

    def _start(self, member: _Member) -> None:
        member.restart = None
        try:
            connection = self._spawned(member)
        except OSError as error:
            logger.error("%s can't be started: %s; that is tried again in %g s", member, error, member.pause)
            self._start_later(member)
            return
        self._count(self._front_files.restarted, member.role, 1 if member.started_at else 0)
        member.started_at = time.monotonic()
        member.link = link = Link(connection, on_message=lambda message, _: self._heard(member, message))
        if member.role == "engine":
            link.send(StartEngine(self._settings))
            for front in self._fronts:
                self._connect(front)
        else:
            order = StartFront(
                self._settings,
                number=member.number,
                fronts=len(self._fronts),
                metrics=self._metrics,
                open_admin=is_local(self._ports.main),
                probes=self._ports.probes is not None,
            )
            link.send(order, file=self._ports.main.fileno())
            if self._ports.probes is not None:
                link.send(Connect(), file=self._ports.probes.fileno())
            self._connect(member)

    def _spawned(self, member: _Member) -> socket.socket:
        """Start a process, and return the connection with it."""
        variables: Mapping[str, str] = {}
        if member.role == "front":
            self._metrics.mkdir(mode=0o700, exist_ok=True)  # the system may clean up where it lies
            variables = self._front_files.environment()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                member.child = self._spawn(theirs, variables)
            except BaseException:
                ours.close()
                raise
        return ours

    def _start_later(self, member: _Member) -> None:
        member.restart = asyncio.get_running_loop().call_later(member.pause, self._start, member)
        member.pause = min(2 * member.pause, LONGEST_PAUSE)

    def _connect(self, front: _Member) -> None:
        """Give a front and the engine process, if both are there, one end each of a new connection."""
        if self._engine.link is None or front.link is None:
            return
        ends = socket.socketpair()
        for link, end in zip((self._engine.link, front.link), ends, strict=True):
            link.send(Connect(), file=end.fileno())
            end.close()

    def _connect_later(self, front: _Member) -> None:
        """Connect a front anew, unless one of both processes is another one by then, which is connected anyhow."""
        links = front.link, self._engine.link

        def connect() -> None:
            if links == (front.link, self._engine.link):
                self._connect(front)

        asyncio.get_running_loop().call_later(RECONNECT_PAUSE, connect)

    def _watch(self, last: float) -> None:
        """Kill children whose event loops have stood still for too long, so that others take their places."""
        loop, timeout = asyncio.get_running_loop(), self._settings.worker_timeout
        now = loop.time()
        stood_still = now - last > min(timeout, 5 * _WATCH_SECONDS)  # this process has, and all others may have
        for member in self._members:
            if member.heard_at is None or member.child is None:
                continue
            if stood_still:
                member.heard_at = now
            elif now - member.heard_at > timeout:
                logger.error("%s has not moved for %g s, and is killed", member, timeout)
                member.child.kill()
                member.heard_at = None
        loop.call_later(_WATCH_SECONDS, self._watch, now)

    def _heard(self, member: _Member, message: Any) -> None:
        now = asyncio.get_running_loop().time()
        match message:
            case Alive():
                if member.heard_at is not None:  # a start may take as long as it likes: libraries come from slow disks
                    member.heard_at = now
            case Started():
                member.serves, member.heard_at = True, now
            case Disconnected():
                self._connect_later(member)
            case Failed():
                logger.error("%s can't serve: %s", member, message.error)
                if not member.serves and self.failure is None:
                    self.failure = message.error
                    self._stop(signal.SIGINT)
            case _:
                raise ValueError(f"{type(message).__name__} is nothing that a child sends.")

    def _look_after_children(self) -> None:
        for member in self._members:
            if member.child is not None and (code := member.child.poll()) is not None:
                self._gone(member, code)

    def _gone(self, member: _Member, code: int) -> None:
        child, member.child, member.heard_at = member.child, None, None
        assert child is not None
        if member.role == "front":
            self._count(self._front_files.gone, child.pid)
            self._connections.tell(member.number, 0)
        if member.link is not None:
            member.link.close()
            member.link = None
        if self._signal is not None or self.failure is not None:
            self._go_on_stopping(member, code)
            return
        lived = time.monotonic() - member.started_at
        if code == 0 or lived > _LONG_LIFE:
            member.pause = FIRST_PAUSE
        logger.error(
            "%s (process %d) has ended %s; it is started again in %g s", member, child.pid, _how(code), member.pause
        )
        self._start_later(member)

    def _count(self, how: Callable[..., None], *arguments: Any) -> None:
        try:
            how(*arguments)
        except Exception:  # figures must not keep a process from being replaced
            logger.exception("the metrics of this server are not complete")

    def _end_by(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._signal is not None:
            first, at = self._signal
            if number == first and now - at < REPEAT_SECONDS:
                return
            logger.warning("%s again: ending now, even if requests are unanswered", name)
            self._kill()
            logging.shutdown()
            os._exit(128 + number)
        self._signal = number, now
        self._stop(number)

    def _stop(self, number: int) -> None:
        """End the fronts, which answer what they have; the engine process ends after the last of them."""
        for opened in self._ports:
            if opened is not None:  # fronts have copies; with this one nobody would be refused
                opened.close()
        for member in self._members:
            if member.restart is not None:
                member.restart.cancel()
        if self._engine.link is not None:
            self._engine.link.send(Drain())
        for front in self._fronts:
            if front.link is not None:
                front.link.send(Stop(number))
        asyncio.get_running_loop().call_later(self._settings.shutdown_timeout + _LAST_SECONDS, self._kill)
        self._go_on_stopping(None, 0)

    def _go_on_stopping(self, gone: _Member | None, code: int) -> None:
        if gone is not None and code not in (0, 1):
            logger.warning("%s has ended %s", gone, _how(code))
        if any(front.child is not None for front in self._fronts):
            return
        if self._engine.child is None:
            self._ended.set()
        elif self._engine.link is not None:
            self._engine.link.send(Stop(signal.SIGTERM))

    def _hang_up(self) -> None:
        if self._on_terminal and not sys.stdin.isatty():  # as it is no longer one, it has gone
            self._end_by(signal.SIGHUP)
        elif self._signal is None:
            logger.info("SIGHUP: looking at the API keys and the model store again")
            for member in self._members:
                if member.link is not None:
                    member.link.send(LookAgain())

    def _kill(self) -> None:
        for member in self._members:
            if member.child is not None:
                member.child.kill()


def _how(code: int) -> str:
    """How a process with this exit code has ended; negative ones are signals."""
    if code >= 0:
        return f"with exit code {code}"
    named = -code in set(signal.Signals)  # most of the real-time signals have no name
    return f"by {signal.Signals(-code).name}" if named else f"by signal {-code}"
