"""A front's rows, computed in another process: the plane's promises over the connection.

All of them hold whether rows are asked for, or come by themselves since there is plenty of room.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import inspect
import socket
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from condconv_serve.cluster.engine_stub import EngineStub
from condconv_serve.cluster.workers import engine_session, front_session, hub
from condconv_serve.cluster.workers.arena import Layout, OwnArena, Placed
from condconv_serve.cluster.workers.known_room import KnownRoom
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import Ended, Raised, Returned, RowDone
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.domain import MadeRow, RowSource, ServedModel
from condconv_serve.domain.facts import Deadline
from condconv_serve.errors import (
    CorruptImage,
    DeadlineExceeded,
    InferenceFailed,
    InvalidParameter,
    ModelNotFound,
    NotReady,
    RateLimited,
    ServiceError,
)
from condconv_serve.inference.batching import Priority
from tests.contract.fakes import FakeEngine
from tests.contract.until import until
from tests.unit.cluster.workers.pair import GUILTY, SHADES, connected, model, pixels, source


@pytest.fixture(autouse=True, params=["asked for", "unasked"])
def _as_if_there_was_room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownRoom, "holds", lambda room, rows: request.param == "unasked")


def closed(loaded: ServedModel) -> bool:
    assert isinstance(loaded.engine, FakeEngine)
    return loaded.engine.closed.is_set()


async def test_answers_are_those_of_the_engine() -> None:
    async with connected() as pair:
        with pair.plane.lease() as leased:
            rows = np.stack([pixels(shade) for shade in (3, 9, 27)])
            found = await pair.plane.infer(leased, rows)
            expected = SHADES(rows)
            assert found.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
        (answer,) = await pair.infer(3)
        assert answer.timings.decode == 0.25
        assert answer.batch_size == 1
        assert pair.outcomes()["answered"] == 4
        assert pair.free_slots() == [8]


async def test_rows_that_fail_spare_the_others_and_are_counted_in_the_engine() -> None:
    async def fails() -> MadeRow:
        raise CorruptImage("Half of it is missing.")

    async def defect() -> MadeRow:
        raise KeyError("secret")

    async with connected() as pair:
        with pair.plane.lease() as leased:
            sources = [source(1), RowSource(fails), source(GUILTY), RowSource(defect), source(2)]
            found: list[Any] = await pair.plane.infer_each(leased, sources)
        assert [type(row) for row in found[1:4]] == [CorruptImage, InferenceFailed, ServiceError]
        assert str(found[1]) == "Half of it is missing."
        assert "secret" not in f"{found[2]} {found[3]}"
        np.testing.assert_array_equal(found[4].tensors["logits"], SHADES(pixels(2)[None])["logits"][0])
        outcomes = pair.outcomes()
        assert (outcomes["answered"], outcomes["corrupt_image"], outcomes["inference_failed"]) == (2, 1, 1)
        assert pair.free_slots() == [8]


async def test_deadlines_are_those_of_the_caller_in_both_processes() -> None:
    async with connected() as pair:
        pair.free.clear()
        deadline = Deadline(time.monotonic() + 0.05, by="caller")
        found = await pair.infer(1, 2, deadline=deadline)
        assert [type(row) for row in found] == [DeadlineExceeded] * 2
        missed = pair.metrics.registry.get_sample_value(
            "condconv_rows_total", {"model": "fake", "outcome": "deadline_exceeded", "deadline": "caller"}
        )
        assert missed == 2


async def test_a_front_that_hangs_takes_no_room_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_session, "LATE_SECONDS", 0.05)
    go_on = asyncio.Event()

    async def hangs() -> MadeRow:
        try:
            await go_on.wait()
        except asyncio.CancelledError:  # as if it had not heard of it yet
            await go_on.wait()
        return MadeRow(pixels(1))

    async with connected(max_queue_rows=2) as pair:
        other = RemoteEngine()
        await pair.connect(other)
        with other.models.lease() as leased:
            session, number = other.session_of(leased)
            sources = [RowSource(hangs), source(1)]
            deadline = time.monotonic() + 0.05
            with pytest.raises(DeadlineExceeded):
                await session.infer_each(number, sources, priority=Priority.LOW, deadline=deadline)
            assert [row.tensors for row in await pair.infer(1, 2)]
            go_on.set()
            await until(lambda: [arena.free for arena in session._arenas] == [8])
        other.close()


async def test_a_caller_who_leaves_before_anything_was_begun_leaves_nothing_behind() -> None:
    async with connected() as pair:
        leaver = asyncio.create_task(pair.infer(1))
        await asyncio.sleep(0)  # the request is on its way, and what ends it will arrive with it
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert (await pair.infer(2))[0].tensors
        front = pair.engine._session
        assert front is not None
        await until(lambda: not front._requests and not pair.sessions[0]._requests)


async def test_a_caller_who_leaves_frees_the_queue_and_later_the_slots() -> None:
    started, hold = asyncio.Event(), asyncio.Event()

    async def slow() -> MadeRow:
        started.set()
        await hold.wait()
        return MadeRow(pixels(1))

    async with connected() as pair:
        pair.free.clear()
        first = asyncio.create_task(pair.infer(1))
        await until(lambda: pair.metrics.registry.get_sample_value("condconv_rows_in_flight") == 1)
        with pair.plane.lease() as leased:
            leaver = asyncio.create_task(pair.plane.infer_each(leased, [source(2), RowSource(slow), source(3)]))
            await started.wait()
            await until(lambda: pair.free_slots() == [5])
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
        await until(lambda: pair.free_slots() == [7] and not len(pair.batcher._queue))
        await until(lambda: pair.outcomes().get("cancelled") == 3)
        pair.free.set()
        await first
        assert pair.free_slots() == [8]


async def test_more_rows_than_slots_go_through_the_socket() -> None:
    async with connected(slots=2) as pair:
        found = await pair.infer(*range(10))
        assert [float(row.tensors["logits"][0]) for row in found] == [
            float(SHADES(pixels(shade)[None])["logits"][0, 0]) for shade in range(10)
        ]
        assert pair.free_slots() == [2]


async def test_rows_without_shared_memory_go_through_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with connected() as pair:
        with monkeypatch.context() as patched:
            patched.setattr(engine_session, "OwnArena", fail)
            assert (await pair.infer(1))[0].tensors
        with monkeypatch.context() as patched:
            patched.setattr("os.dup", fail)
            assert (await pair.infer(1))[0].tensors
        assert (await pair.infer(1, 2))[1].tensors
        assert pair.free_slots() == [8]


async def test_memory_that_a_burst_took_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def trim(arena: OwnArena, most: int) -> None:
        trimmed.append(arena)

    trimmed = list[OwnArena]()
    monkeypatch.setattr(engine_session, "TRIM_SECONDS", 0.01)
    monkeypatch.setattr(OwnArena, "trim", trim)
    async with connected() as pair:
        await pair.infer(*range(8))
        session = pair.engine._session
        assert session is not None
        await until(lambda: len(trimmed) > 2)
        assert set(trimmed) == set(session._arenas)
        pair.engine.close()
        trimmed.clear()
        await asyncio.sleep(0.05)
        assert not trimmed


async def test_rows_are_checked_where_they_come_from() -> None:
    async with connected() as pair:
        with pair.plane.lease() as leased, pytest.raises(InvalidParameter, match=r"\[N, 32, 32, 3\]"):
            await pair.plane.infer(leased, np.zeros((1, 8, 8, 3), np.uint8))
        with pytest.raises(ModelNotFound):
            pair.plane.lease("other")


async def test_a_model_stays_loaded_until_the_last_front_has_let_it_go() -> None:
    async with connected() as pair:
        other = RemoteEngine()
        await pair.connect(other)
        old, new = pair.models.models()["fake"]["1"], model(version="2")
        pair.free.clear()
        asked = asyncio.create_task(pair.infer(5))
        lease = other.models.lease()
        pair.models.serve(new)
        await until(lambda: all("2" in front.models.models()["fake"] for front in (pair.engine, other)))
        await asyncio.sleep(0.02)
        assert not closed(old)
        pair.free.set()
        (answer,) = await asked
        assert answer.tensors
        await asyncio.sleep(0.02)
        assert not closed(old), "the other front still holds it"
        lease.release()
        await until(lambda: closed(old))
        assert (await pair.infer(1))[0].tensors
        other.close()


async def test_a_front_that_dies_holds_nothing_back() -> None:
    async with connected() as pair:
        pair.free.clear()
        other = RemoteEngine()
        await pair.connect(other)
        with other.models.lease() as leased:
            session, number = other.session_of(leased)
            asked = asyncio.create_task(
                session.infer_each(number, [source(1)] * 3, priority=Priority.LOW, deadline=1e9)
            )
            await until(lambda: pair.metrics.registry.get_sample_value("condconv_rows_in_flight"))
            other.close()
            with pytest.raises(NotReady):
                await asked
        old = pair.models.models()["fake"]["1"]
        pair.models.serve(model(version="2"))
        await until(lambda: pair.outcomes().get("cancelled") == 3)
        pair.free.set()
        await until(lambda: closed(old))
        assert (await pair.infer(1))[0].tensors
        gc.collect()


async def test_an_engine_that_goes_fails_what_is_open_and_another_one_takes_over() -> None:
    async with connected() as pair:
        pair.free.clear()
        asked = asyncio.create_task(pair.infer(1))
        await until(lambda: pair.metrics.registry.get_sample_value("condconv_rows_in_flight"))
        lease = pair.engine.models.lease()
        pair.sessions[0].close()
        with pytest.raises(NotReady) as caught:
            await asked
        assert caught.value.retry_after
        for reason in (pair.engine.readiness.refusal(), pair.engine.readiness.unready()):
            assert isinstance(reason, NotReady)
        with pytest.raises(NotReady):
            await pair.engine.call("anything")
        pair.free.set()
        pair.models.serve(model())
        await pair.connect()
        await until(lambda: pair.engine.readiness.refusal() is None)
        with pytest.raises(NotReady), lease as leased:  # found in the engine process that has gone
            await pair.plane.infer_each(leased, [source(1)])
        assert (await pair.infer(1))[0].tensors


async def test_a_front_asks_for_a_new_connection_only_if_it_has_not_ended_the_old_one() -> None:
    lost = list[str]()
    async with connected() as pair:
        engine = RemoteEngine(on_lost=lambda: lost.append("lost"))
        await pair.connect(engine)
        await pair.connect(engine)
        engine.close()
        await asyncio.sleep(0.02)
        assert not lost
        await pair.connect(engine)
        for session in pair.sessions[1:]:
            session.close()
        await until(lambda: lost == ["lost"])
        assert isinstance(engine.readiness.refusal(), NotReady)


async def test_an_engine_process_that_has_said_nothing_yet_is_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may import libraries for a while. Nobody waits for it, not even whoever asks for metrics."""
    monkeypatch.setattr(engine_session, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(engine_session, "_WATCH_SECONDS", 0.01)
    engine = RemoteEngine()
    ours, theirs = socket.socketpair()
    with theirs:
        engine.connect(ours)
        for _ in range(2):
            with pytest.raises(NotReady, match="is starting"):
                async with asyncio.timeout(5):
                    await engine.call("metrics.collect")
            assert "is starting" in str(engine.readiness.refusal())
            await asyncio.sleep(0.2)
        engine.close()


async def test_an_engine_process_that_hangs_is_not_ready_and_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(engine_session, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(engine_session, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(hub, "BEAT_LOOKS", 1_000_000)
    async with connected(calls={"endless": endless}) as pair:
        pair.free.clear()
        for asked in (asyncio.create_task(pair.infer(1)), asyncio.create_task(pair.engine.call("endless"))):
            with pytest.raises(NotReady, match="doesn't answer") as caught:
                await asked
            assert caught.value.retry_after
        assert isinstance(pair.engine.readiness.refusal(), NotReady)
        assert isinstance(pair.engine.readiness.unready(), NotReady)
        monkeypatch.setattr(engine_session, "SILENT_SECONDS", 60)
        monkeypatch.setattr(hub, "BEAT_LOOKS", 1)
        await until(lambda: pair.engine.readiness.refusal() is None)
        pair.free.set()
        assert (await pair.infer(2))[0].tensors
        await until(lambda: pair.free_slots() == [8])


async def test_readiness_follows_and_a_failed_row_never_comes_before_it() -> None:
    async with connected() as pair:
        for _ in range(2):
            await pair.infer(GUILTY)
            assert pair.engine.readiness.refusal() is None
        await pair.infer(GUILTY)
        refusal = pair.engine.readiness.refusal()
        assert isinstance(refusal, NotReady)
        assert "3 times in a row" in str(refusal)
        pair.readiness.drain()
        await until(lambda: pair.engine.readiness.draining)


async def test_calls_return_raise_and_can_be_left() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def doubled(number: int) -> int:
        return 2 * number

    def halved(number: int) -> int:  # nothing to await
        return 10 // number

    async def refused() -> None:
        raise RateLimited("Too many.", retry_after=7.0)

    async def broken() -> None:
        raise KeyError("secret")

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    calls = {"doubled": doubled, "refused": refused, "broken": broken, "halved": halved, "endless": endless}
    async with connected(calls=calls) as pair:
        assert await asyncio.gather(*(pair.engine.call("doubled", n) for n in range(5))) == [0, 2, 4, 6, 8]
        assert await pair.engine.call("halved", 5) == 2
        with pytest.raises(ServiceError):
            await pair.engine.call("halved", 0)
        with pytest.raises(RateLimited, match="Too many") as caught:
            await pair.engine.call("refused")
        assert caught.value.retry_after == 7.0
        for name in ("broken", "not in the table"):
            with pytest.raises(ServiceError) as unexpected:
                await pair.engine.call(name)
            assert "secret" not in str(unexpected.value)
        call = asyncio.create_task(pair.engine.call("endless"))
        await begun.wait()
        call.cancel()
        await left.wait()


async def test_who_decodes_a_photo_while_the_engine_process_goes_is_not_left_waiting() -> None:
    async with connected() as pair:
        pair.models.serve(dataclasses.replace(model("crops"), crop_jpeg=lambda *arguments: None))
        await until(lambda: "crops" in pair.engine.models.models())
        with pair.plane.lease("crops") as leased:
            crop, session = leased.crop_jpeg, pair.engine._session
            assert crop is not None
            assert session is not None
            assert await asyncio.to_thread(crop, b"", 0, 0, 1) is None
            pair.engine.close()
            with pytest.raises(NotReady):
                await session.call("metrics.collect")
            with pytest.raises(NotReady):
                await asyncio.to_thread(crop, b"", 0, 0, 1)


async def test_a_call_that_is_given_up_in_the_turn_in_which_it_came_has_an_end() -> None:
    called = list[Coroutine[Any, Any, None]]()

    def endless() -> Coroutine[Any, Any, None]:
        called.append(asyncio.sleep(1000))
        return called[0]

    async with connected(calls={"endless": endless}) as pair:
        call = asyncio.create_task(pair.engine.call("endless"))
        await asyncio.sleep(0)  # it is sent, and its cancellation is before the other end reads it
        call.cancel()
        await until(lambda: called and inspect.getcoroutinestate(called[0]) == inspect.CORO_CLOSED)
        await until(lambda: not pair.sessions[0]._tasks)


async def test_an_answer_that_meets_a_caller_who_leaves_spares_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def doubled(number: int) -> int:
        return 2 * number

    def refused() -> None:
        raise RateLimited("Too many.", retry_after=7.0)

    async with connected(calls={"doubled": doubled, "refused": refused}) as pair:
        session = pair.engine._session
        assert session is not None
        take = session._link._on_message

        def leave_and_take(message: Any, link: Link) -> None:
            if isinstance(message, (Returned, Raised)):
                leaver.cancel()
            take(message, link)

        for call in (pair.engine.call("doubled", 1), pair.engine.call("refused")):
            with monkeypatch.context() as patched:
                patched.setattr(session._link, "_on_message", leave_and_take)
                leaver = asyncio.create_task(call)
                with pytest.raises(asyncio.CancelledError):
                    await leaver
            assert await pair.engine.call("doubled", 2) == 4


async def test_an_answer_that_makes_no_sense_fails_its_request() -> None:
    nonsense: Layout = (("logits", Placed("|u1", (2**40,), 0)),)
    async with connected() as pair:
        pair.free.clear()
        asked = asyncio.create_task(pair.infer(1))
        await until(lambda: pair.metrics.registry.get_sample_value("condconv_rows_in_flight"))
        (number,) = pair.sessions[0]._requests
        pair.sessions[0]._link.send(Ended(number, (RowDone(0, 0, 0, 0, 1, None, None, nonsense),)))
        with pytest.raises(NotReady):
            await asked


async def test_nothing_is_computed_in_a_front() -> None:
    async with connected() as pair:
        with pair.plane.lease() as leased:
            assert isinstance(leased.engine, EngineStub)
            with pytest.raises(TypeError):
                leased.engine(pixels(1)[None])
