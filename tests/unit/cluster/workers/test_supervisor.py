"""The supervising process, with children that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from condconv_serve.cluster.workers import supervisor as supervising
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.orders import (
    Alive,
    Connect,
    Disconnected,
    LookAgain,
    Started,
    StartEngine,
    StartFront,
    Stop,
)
from condconv_serve.cluster.workers.supervisor import Ports, Supervisor
from condconv_serve.http.server import listen
from condconv_serve.settings import Settings
from condconv_serve.telemetry.front_files import FrontFiles
from tests.contract.until import until


class Played:
    """A child that ends when it is told to."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.heard: list[Any] = []
        self.link = Link(connection.dup(), on_message=self._take)
        self._code: int | None = None

    def _take(self, message: Any, link: Link) -> None:
        if isinstance(message, (Connect, StartFront)):
            os.close(link.take_file())
        self.heard.append(message)
        if isinstance(message, Stop):
            self.end(0)

    def end(self, code: int) -> None:
        self._code = code
        self.link.close()
        signal.raise_signal(signal.SIGCHLD)

    def heard_of(self, order: type) -> int:
        return sum(isinstance(message, order) for message in self.heard)

    def poll(self) -> int | None:
        return self._code

    def kill(self) -> None:
        self._code = -signal.SIGKILL


class Children:
    """All children that were ever started. Starting one fails as often as `failing` says."""

    def __init__(self) -> None:
        self.failing = 0
        self.started: list[Played] = []

    def spawn(self, connection: socket.socket, variables: Mapping[str, str]) -> Played:
        if self.failing:
            self.failing -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.started.append(child := Played(connection, pid=10_000_000 + len(self.started)))
        return child

    def of(self, order: type) -> list[Played]:
        """Those that were told to be this."""
        return [child for child in self.started if child.heard_of(order)]

    def count(self) -> Mapping[str, int]:
        return Counter(type(child.heard[0]).__name__ for child in self.started if child.heard)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "RECONNECT_PAUSE", 0.05)


@contextlib.asynccontextmanager
async def supervised(metrics: Path, *, fronts: int = 2, worker_timeout: float = 60) -> AsyncIterator[Children]:
    """A supervising process whose children are there."""
    settings = Settings(workers=fronts).model_copy(update={"worker_timeout": worker_timeout})  # also shorter ones
    children, ports = Children(), Ports(listen("127.0.0.1", 0), None)
    supervisor = Supervisor(settings, fronts=fronts, ports=ports, metrics=metrics, spawn=children.spawn)
    running = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(60):
            await until(lambda: children.count() == {"StartEngine": 1, "StartFront": fronts}, 60)
            yield children
            signal.raise_signal(signal.SIGTERM)
            await running
        assert supervisor.failure is None
    finally:  # whatever has failed leaves nothing open that another test would be blamed for
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        ports.main.close()
        for child in children.started:
            child.link.close()


async def test_who_dies_is_replaced_and_connected(tmp_path: Path) -> None:
    async with supervised(tmp_path) as children:
        (engine,), (front, other) = children.of(StartEngine), children.of(StartFront)
        await until(lambda: engine.heard_of(Connect) == 2)
        front.end(1)
        await until(lambda: children.count()["StartFront"] == 3)
        await until(lambda: engine.heard_of(Connect) == 3 and other.heard_of(Connect) == 1)
        engine.end(-signal.SIGSEGV)
        await until(lambda: children.count()["StartEngine"] == 2)
        new = children.of(StartEngine)[1]
        await until(lambda: new.heard_of(Connect) == other.heard_of(Connect) == 2)


async def test_who_is_ended_by_a_signal_without_a_name_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unnamed = next(n for n in sorted(signal.valid_signals()) if n not in set(signal.Signals))
    async with supervised(tmp_path) as children:
        children.of(StartFront)[0].end(-unnamed)
        await until(lambda: children.count()["StartFront"] == 3)
    assert f"has ended by signal {unnamed}; it is started again" in caplog.text


async def test_who_hangs_is_killed_once_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "_WATCH_SECONDS", 0.01)
    async with supervised(tmp_path, worker_timeout=0.2) as children:
        (engine,), (front, starting) = children.of(StartEngine), children.of(StartFront)
        engine.link.send(Started())
        front.link.send(Started())
        while engine.poll() is None:
            front.link.send(Alive())
            await asyncio.sleep(0.01)
        assert front.poll() is None
        assert starting.poll() is None
        await until(lambda: front.poll() is not None)  # it has stopped to say that it doesn't
        assert starting.poll() is None


async def test_nobody_who_hangs_is_killed_if_so_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "_WATCH_SECONDS", 0.01)
    async with supervised(tmp_path, worker_timeout=0) as children:
        for child in children.started:
            child.link.send(Started())
        await asyncio.sleep(0.3)
        assert not any(child.poll() for child in children.started)


async def test_who_supervises_blames_nobody_for_its_own_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "_WATCH_SECONDS", 0.01)
    async with supervised(tmp_path, worker_timeout=0.2) as children:
        for child in children.started:
            child.link.send(Started())
        await asyncio.sleep(0.05)
        time.sleep(0.5)  # noqa: ASYNC251 - the process stands still
        for child in children.started:
            child.link.send(Alive())
        await asyncio.sleep(0.05)
        assert not any(child.poll() for child in children.started)


async def test_each_restart_is_counted(tmp_path: Path) -> None:
    def counted() -> dict[str, float]:
        (family,) = (f for f in FrontFiles(tmp_path).families() if f.name == "condconv_worker_restarts")
        return {sample.labels["process"]: sample.value for sample in family.samples}

    async with supervised(tmp_path) as children:
        assert counted() == {"engine": 0, "front": 0}
        children.of(StartFront)[0].end(1)
        await until(lambda: counted() == {"engine": 0, "front": 1})
        await until(lambda: len(children.of(StartFront)) == 3)
        children.of(StartFront)[2].end(0)
        children.of(StartEngine)[0].end(-signal.SIGSEGV)
        await until(lambda: counted() == {"engine": 1, "front": 2})


async def test_a_front_that_has_lost_a_living_engine_is_connected_anew(tmp_path: Path) -> None:
    async with supervised(tmp_path) as children:
        (engine,), (front, other) = children.of(StartEngine), children.of(StartFront)
        await until(lambda: engine.heard_of(Connect) == 2)
        front.link.send(Disconnected())
        await until(lambda: engine.heard_of(Connect) == 3 and front.heard_of(Connect) == 2)
        assert other.heard_of(Connect) == 1


async def test_a_front_is_connected_once_with_an_engine_that_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, pause, after_pause = asyncio.get_running_loop(), 3600.0, list[Any]()
    call_later = loop.call_later

    def call_or_keep(delay: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:
        if delay == pause:
            after_pause.append(callback)
        return call_later(delay, callback, *arguments)

    monkeypatch.setattr(supervising, "RECONNECT_PAUSE", pause)
    monkeypatch.setattr(loop, "call_later", call_or_keep)
    async with supervised(tmp_path, fronts=1) as children:
        (engine,), (front,) = children.of(StartEngine), children.of(StartFront)
        await until(lambda: engine.heard_of(Connect) == 1)
        front.link.send(Disconnected())
        await until(lambda: after_pause)
        engine.end(1)
        await until(lambda: children.count()["StartEngine"] == 2)
        (connect,) = after_pause
        connect()
        signal.raise_signal(signal.SIGHUP)  # tells both something, after all that they have been told before
        new = children.of(StartEngine)[1]
        await until(lambda: new.heard_of(LookAgain) == front.heard_of(LookAgain) == 1)
        assert new.heard_of(Connect) == 1
        assert front.heard_of(Connect) == 2


async def test_who_cannot_be_started_now_is_started_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with supervised(tmp_path) as children:
        children.failing = 1
        children.of(StartFront)[0].end(1)
        await until(lambda: children.count()["StartFront"] == 3)
        assert not children.failing
    assert "front 1 can't be started: [Errno 11]" in caplog.text


async def test_without_its_directory_of_metrics_a_front_is_replaced_all_the_same(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    async with supervised(metrics) as children:
        shutil.rmtree(metrics)
        children.of(StartFront)[0].end(1)
        await until(lambda: children.count()["StartFront"] == 3)
        assert metrics.stat().st_mode & 0o777 == 0o700, "a front can't start without it"
