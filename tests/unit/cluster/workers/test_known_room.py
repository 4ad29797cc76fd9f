"""Where there is plenty of room, fronts don't ask for it; where there isn't, or nobody knows, they do."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from condconv_serve.cluster.workers import known_room
from condconv_serve.cluster.workers.known_room import KNOWN_SECONDS, REFUSED_SECONDS, KnownRoom
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import Call, Make, NewArena, Open, ReadinessReport, RowFailed, RowMade
from condconv_serve.domain import MadeRow, RowSource
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import CorruptImage, QueueFull
from condconv_serve.inference.batching import Priority
from tests.contract.until import until
from tests.unit.cluster.workers.pair import Pair, connected, pixels, source


def test_what_is_known_is_used_up_and_gets_old() -> None:
    now = 100.0
    room = KnownRoom(clock=lambda: now)
    assert not room.holds(1), "nobody has said anything"
    room.answered(3)
    assert room.take(2)
    assert not room.take(2)
    assert room.take(1)
    assert not room.holds(1)
    room.answered(3)
    now += KNOWN_SECONDS
    assert not room.holds(1)
    room.answered(0)
    assert not room.holds(1)


def test_who_was_refused_asks_for_a_while() -> None:
    now = 100.0
    room = KnownRoom(clock=lambda: now)
    room.refused()
    room.answered(3)
    assert not room.take(1)
    now += REFUSED_SECONDS
    assert not room.take(1), "that was said too long ago"
    room.answered(3)
    assert room.take(1)


@pytest.fixture
def _known_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(known_room, "KNOWN_SECONDS", 60.0)
    monkeypatch.setattr(known_room, "REFUSED_SECONDS", 60.0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that both ends say, but for readiness and memory."""
    said, send = list[Any](), Link.send

    def record(link: Link, message: Any, **options: Any) -> None:
        if not isinstance(message, ReadinessReport | NewArena):
            said.append(message)
        send(link, message, **options)

    monkeypatch.setattr(Link, "send", record)
    return said


async def ask(pair: Pair, *shades: int) -> list[Any]:
    await pair.plane.check()
    return await pair.infer(*shades)


@pytest.mark.usefixtures("_known_for_long")
async def test_an_answer_says_how_much_room_there_is(said: list[Any]) -> None:
    async with connected(max_queue_rows=8) as pair:
        said.clear()
        await ask(pair, 1)
        assert [type(message).__name__ for message in said] == [
            *("Call", "Returned", "Open", "Make", "RowMade", "Ended"),
        ]
        assert said[-1].spare_rows == 4
        said.clear()
        found = await ask(pair, 1, 2, 3)
        assert [row.timings.decode for row in found] == [0.25] * 3
        assert [type(message).__name__ for message in said] == ["Open", "RowMade", "RowMade", "RowMade", "Ended"]
        said.clear()
        await ask(pair, *range(5))
        assert sum(isinstance(message, Make) for message in said) == 5, "these would more than half fill the queue"
        assert pair.outcomes()["answered"] == 9


async def test_no_row_is_made_before_there_is_room_for_it() -> None:
    made = 0

    async def make() -> MadeRow:
        nonlocal made
        made += 1
        return MadeRow(pixels(1))

    async with connected(max_queue_rows=4) as pair:
        await ask(pair, 1)
        pair.free.clear()
        first = asyncio.create_task(pair.infer(1))
        await until(lambda: pair.metrics.registry.get_sample_value("condconv_rows_in_flight") == 1)
        others = asyncio.create_task(pair.infer(2, 3, 4, 5))
        await until(lambda: len(pair.batcher._queue) == 4)
        await asyncio.sleep(KNOWN_SECONDS)
        with pair.plane.lease() as leased:
            with pytest.raises(QueueFull) as caught:
                await pair.plane.infer_each(leased, [RowSource(make)])
            with pytest.raises(QueueFull):
                await pair.plane.check()
        assert caught.value.retry_after is not None
        assert not made
        pair.free.set()
        assert len(await first) + len(await others) == 5
        await pair.plane.check()


@pytest.mark.usefixtures("_known_for_long")
async def test_rows_that_nobody_asked_for_are_lost_without_a_trace_if_there_is_no_room(
    said: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Another front was faster: the queue is full, and the request is refused as any other."""

    async def fails() -> MadeRow:
        raise CorruptImage("Half of it is missing.")

    async with connected(max_queue_rows=4) as pair:
        await ask(pair, 1)
        with pair.engine_plane.lease() as found, pair.batcher.admit(found, 4), pair.plane.lease() as leased:
            said.clear()
            with pytest.raises(QueueFull):
                await pair.plane.infer_each(leased, [source(1), RowSource(fails)])
            assert [type(message) for message in said[:3]] == [Open, RowMade, RowFailed]
            said.clear()
            with pytest.raises(QueueFull):
                await ask(pair, 1)
            assert isinstance(said[0], Call), "from now on it asks"
        await until(lambda: pair.free_slots() == [8])
        assert not pair.sessions[0]._requests
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("_known_for_long")
async def test_requests_that_the_cache_may_answer_are_asked_for(said: list[Any]) -> None:
    async with connected() as pair:
        await ask(pair, 1)
        said.clear()
        with pair.plane.lease() as leased:
            session, number = pair.engine.session_of(leased)
            use = CacheUse(scope="")
            await session.infer_each(number, [source(1)], priority=Priority.NORMAL, deadline=1e9, cache=use)
        assert sum(isinstance(message, Make) for message in said) == 1
