"""What happens to rows when time, memory or the engine run out."""

import asyncio
import contextlib
import gc
import time
import weakref

import pytest

from condconv_serve.errors import (
    DeadlineExceeded,
    Draining,
    EngineStalled,
    InferenceFailed,
    OutOfMemory,
    QueueFull,
    WaitTooLong,
)
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.batching.health import MAX_FAILURES
from tests.unit.inference.batching.rows import Engine, batching, send, settle, start

pytestmark = pytest.mark.usefixtures("_virtual_time")


class Paced:
    """Takes a given time per batch and answers ten times the row."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.sizes = []

    async def __call__(self, key, rows):
        self.sizes.append(len(rows))
        await asyncio.sleep(self.seconds)
        return [row * 10 for row in rows]


class Small:
    """Has memory for a few rows only."""

    def __init__(self, most, error=OutOfMemory):
        self.most = most
        self.error = error
        self.sizes = []

    async def __call__(self, key, rows):
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise self.error("none left")
        return [row * 10 for row in rows]


async def test_a_row_that_waits_too_long_ends_at_its_deadline_and_is_not_computed():
    engine = Engine(held=True)
    async with batching(engine) as batcher:
        (first,) = start(batcher, [0])
        await settle()
        (second,), (third,) = start(batcher, [1], seconds=0.05), start(batcher, [2])
        await settle()
        with pytest.raises(DeadlineExceeded):
            await second
        assert not third.done(), "the engine still computes the first one"
        assert batcher.read("condconv_queue_rows") == 1
        engine.release()
        assert [(await first).output, (await third).output] == [0, 20]
    assert engine.batches == [("a", [0]), ("a", [2])]


async def test_a_row_in_flight_ends_at_its_deadline_and_its_mates_are_answered():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=3) as batcher:
        tasks = start(batcher, [0, 1]) + start(batcher, [2], seconds=0.05)
        await settle()
        with pytest.raises(DeadlineExceeded):
            await tasks[2]
        engine.release()
        assert [(await task).output for task in tasks[:2]] == [0, 10]


async def test_a_row_without_an_output_fails_alone_and_is_not_tried_again():
    class Partial(Engine):
        async def __call__(self, key, rows):
            outputs = await super().__call__(key, rows)
            return [OutOfMemory(f"row {row}") if row % 2 else output for row, output in zip(rows, outputs, strict=True)]

    engine = Partial()
    async with batching(engine) as batcher:
        found = await asyncio.gather(*start(batcher, [0, 1, 2, 3]), return_exceptions=True)
        assert [getattr(one, "output", str(one)) for one in found] == [0, "row 1", 20, "row 3"]
        assert batcher.health.problem() is None
    assert engine.sizes == [4]


async def test_each_row_ends_at_its_own_deadline_whatever_the_order_in_which_they_came():
    engine, ended = Engine(held=True), []

    async def send_late(row, seconds):
        deadline = time.monotonic() + seconds
        with batcher.admit("a", 1) as admission, pytest.raises(DeadlineExceeded):
            await batcher.submit(row, admission, deadline=deadline)
        assert time.monotonic() >= deadline
        ended.append(row)

    async with batching(engine) as batcher:
        computed, waiting = start(batcher, [0, 1], seconds=60)
        await settle()
        await asyncio.gather(*map(send_late, range(2, 7), (0.8, 0.2, 0.4, -1, 0.6)))
        assert ended == [5, 3, 4, 6, 2]
        assert not computed.done()
        await send_late(7, 0.05)  # the clock still rings
        engine.release()
        assert [(await task).output for task in (computed, waiting)] == [0, 10]
    assert sum(engine.sizes) == 2


async def test_the_urgent_overtake_what_waits():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=1) as batcher:
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1], priority=Priority.LOW)
        tasks += start(batcher, [2])
        tasks += start(batcher, [3], priority=Priority.HIGH)
        await settle()
        engine.release()
        await asyncio.gather(*tasks)
    assert [rows for _, rows in engine.batches] == [[0], [3], [2], [1]]


async def test_a_full_queue_says_when_it_will_be_empty():
    engine = Paced(0.1)
    async with batching(engine, max_batch_size=2, max_queue_rows=8) as batcher:
        await asyncio.gather(*start(batcher, range(4)))  # 2 rows per 0.1 s
        tasks = start(batcher, range(2))
        await settle()
        tasks += start(batcher, range(8))
        await settle()
        with pytest.raises(QueueFull) as caught:
            batcher.admit("a", 1)
        assert caught.value.retry_after == pytest.approx(0.4, rel=0.25), "8 rows at 20 rows per second"
        assert batcher.predicted_wait() == caught.value.retry_after
        assert batcher.read("condconv_predicted_wait_seconds") == caught.value.retry_after
        await asyncio.gather(*tasks)


async def test_what_would_come_too_late_is_refused_at_once():
    engine = Paced(0.1)
    async with batching(engine, max_batch_size=2) as batcher:
        await asyncio.gather(*start(batcher, range(4)))
        tasks = start(batcher, range(2))
        await settle()
        tasks += start(batcher, range(8))
        await settle()
        with pytest.raises(
            WaitTooLong, match=r"^The answer would take about 0\.\d+ s, but must be there in 0\.3 s\.$"
        ) as e:
            await send(batcher, 1, seconds=0.3)
        assert e.value.retry_after == pytest.approx(0.4, rel=0.25)
        assert (await send(batcher, 1, seconds=0.3, priority=Priority.HIGH)).output == 10, "it overtakes the others"
        assert (await send(batcher, 1, seconds=5)).output == 10
        await asyncio.gather(*tasks)


async def test_a_request_larger_than_its_deadline_allows_is_refused():
    async with batching(Paced(0.1), max_batch_size=2) as batcher:
        await asyncio.gather(*start(batcher, range(4)))
        with batcher.admit("b", 1):
            with pytest.raises(WaitTooLong):
                batcher.admit("a", 40, deadline=time.monotonic() + 1)
            with batcher.admit("a", 4, deadline=time.monotonic() + 1):
                pass


async def test_an_idle_batcher_admits_whatever_the_estimate_says():
    """It may be wrong, and if everything were refused, nothing could put it right."""
    engine = Paced(0.3)
    async with batching(engine, max_batch_size=2) as batcher:
        await asyncio.gather(*start(batcher, range(2)))
        engine.seconds = 0.001
        assert (await send(batcher, 1, seconds=0.1)).output == 10
        with batcher.admit("b", 1), pytest.raises(WaitTooLong):  # it is not the estimate that has changed
            batcher.admit("a", 20, deadline=time.monotonic() + 0.001)


class TwoVersions:
    """Of one model: version 2 needs ten times as long per row as version 1, and has memory for fewer rows."""

    def __init__(self):
        self.seconds_per_row = {"1": 0.005, "2": 0.05}
        self.most = {"1": 8, "2": 2}
        self.sizes = {"1": [], "2": []}

    async def __call__(self, key, rows):
        _, version = key
        self.sizes[version].append(len(rows))
        if len(rows) > self.most[version]:
            raise OutOfMemory("none left")
        await asyncio.sleep(self.seconds_per_row[version] * len(rows))
        return [row * 10 for row in rows]


async def test_versions_of_one_model_have_an_estimate_and_a_limit_each_but_share_a_label():
    engine, one, two = TwoVersions(), ("a", "1"), ("a", "2")
    async with batching(engine, max_batch_size=8, label_of=lambda key: key[0]) as batcher:
        await asyncio.gather(*start(batcher, range(8), one), *start(batcher, range(8), two))
        waits = []
        for key in (one, two):
            with batcher.admit(key, 8):
                waits.append(batcher.predicted_wait())
        assert waits[1] > 4 * waits[0] > 0
        between = sum(waits) / 2
        with batcher.admit(("b", "1"), 1):
            with pytest.raises(WaitTooLong):
                batcher.admit(two, 8, deadline=time.monotonic() + between)
            with batcher.admit(one, 8, deadline=time.monotonic() + between):
                pass
        engine.sizes["1"].clear()
        engine.sizes["2"].clear()
        await asyncio.gather(*start(batcher, range(8), one), *start(batcher, range(8), two))
        assert engine.sizes == {"1": [8], "2": [2, 2, 2, 2]}
        assert batcher.read("condconv_batch_failures_total", model="a", reason="out_of_memory") == 3
        assert batcher.read("condconv_batch_size_count", model="a") == 1 + 4 + 1 + 4


async def test_keys_of_equal_identity_share_what_is_learned():
    async with batching(Paced(0.05), max_batch_size=2, identity_of=lambda key: key.lower()) as batcher:
        await asyncio.gather(*start(batcher, range(2), "a"))
        with batcher.admit("c", 1):
            with pytest.raises(WaitTooLong):
                batcher.admit("A", 20, deadline=time.monotonic() + 0.1)
            with batcher.admit("b", 20, deadline=time.monotonic() + 0.1):
                pass


async def test_an_early_check_refuses_what_would_not_be_admitted_and_takes_no_room():
    engine = Paced(0.05)
    async with batching(engine, max_batch_size=2, max_queue_rows=8) as batcher:
        await asyncio.gather(*start(batcher, range(2)))
        batcher.check("a", 8)
        assert batcher.read("condconv_queue_rows") == 0
        with batcher.admit("a", 8):
            for ask in (batcher.check, batcher.admit):
                with pytest.raises(QueueFull) as caught:
                    ask("a", 1, deadline=time.monotonic() + 0.001)
                assert caught.value.retry_after == batcher.predicted_wait() > 0.15, "8 rows at 40 rows per second"
        with batcher.admit("b", 1):
            for ask in (batcher.check, batcher.admit):
                with pytest.raises(WaitTooLong):
                    ask("a", 7, deadline=time.monotonic() + 0.1)
        assert batcher.read("condconv_queue_rows") == 0
        batcher.close()
        for ask in (batcher.check, batcher.admit):
            with pytest.raises(Draining):
                ask("a", 1, deadline=time.monotonic() + 0.001)


@pytest.mark.parametrize("error", [OutOfMemory, MemoryError])
async def test_out_of_memory_halves_batches_until_they_fit_and_stays_careful(error, caplog):
    engine = Small(2, error)
    async with batching(engine, max_batch_size=8) as batcher:
        results = await asyncio.gather(*start(batcher, range(8)))
        assert [result.output for result in results] == [10 * row for row in range(8)]
        assert engine.sizes == [8, 4, 2, 2, 4, 2, 2]
        engine.sizes.clear()
        await asyncio.gather(*start(batcher, range(8)))
        assert engine.sizes == [2, 2, 2, 2], "the limit stays lowered for a while"
        assert batcher.read("condconv_batch_failures_total", model="a", reason="out_of_memory") == 3
        assert batcher.health.problem() is None
    assert "no memory for 8 rows of a; batches of up to 4" in caplog.text


async def test_out_of_memory_for_one_model_leaves_the_others_their_batches():
    engine = Small(2)
    async with batching(engine, max_batch_size=4) as batcher:
        await asyncio.gather(*start(batcher, range(4), "a"))
        engine.most = 4
        engine.sizes.clear()
        await asyncio.gather(*start(batcher, range(4), "b"))
        assert engine.sizes == [4]


async def test_a_row_for_which_there_is_no_memory_even_alone():
    engine = Small(0)
    async with batching(engine) as batcher:
        outcomes = await asyncio.gather(*start(batcher, range(3)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {OutOfMemory}
        engine.most = 1
        assert (await send(batcher, 1)).output == 10


@pytest.mark.parametrize("error", [ValueError, EngineStalled, OutOfMemory])
async def test_an_engine_that_fails_again_and_again_is_reported(error):
    engine = Engine(guilty=range(100), error=error)
    async with batching(engine, max_batch_size=1) as batcher:
        for row in range(MAX_FAILURES):
            assert batcher.health.problem() is None
            with pytest.raises((InferenceFailed, EngineStalled, OutOfMemory)):
                await send(batcher, row)
        reason, seconds = batcher.health.problem()
        assert reason.startswith(f"The engine has failed {MAX_FAILURES} times in a row: ")
        assert seconds > 0
        if error is ValueError:
            assert "secret" not in reason
        engine.guilty.clear()
        await send(batcher, 1)
        assert batcher.health.problem() is None


async def test_guilty_rows_among_good_ones_don_t_make_the_engine_look_broken():
    engine = Engine(guilty={0})
    async with batching(engine, max_batch_size=4) as batcher:
        for _ in range(3 * MAX_FAILURES):
            await asyncio.gather(*start(batcher, range(4)), return_exceptions=True)
        assert batcher.health.problem() is None


async def test_an_output_that_can_t_be_handed_out_costs_its_batch_but_not_the_stream(caplog):
    class Odd:
        def __len__(self):
            return 1

        def __iter__(self):
            raise LookupError("secret")

    odd = True

    async def run(key, rows):
        return Odd() if odd else [row * 10 for row in rows]

    async with batching(run) as batcher:
        with pytest.raises(InferenceFailed) as caught:
            await send(batcher, 1)
        assert "secret" not in str(caught.value)
        odd = False
        assert (await send(batcher, 2)).output == 20
    assert "a batch of 1 rows was lost" in caplog.text


async def test_leaving_waits_no_longer_than_the_drain_timeout():
    engine = Engine(held=True)
    started = time.monotonic()
    async with batching(engine, drain_timeout=0.1) as batcher:
        tasks = start(batcher, [0])
        await settle()
    assert time.monotonic() - started >= 0.1
    assert not tasks[0].done()
    for task in tasks:
        task.cancel()


async def test_rows_of_a_batch_that_failed_do_not_stay_in_memory_until_the_next_batch():
    class Photo:
        pass

    async def hangs(key, rows):
        raise EngineStalled("secret")  # it isn't logged, and logs keep where errors were raised

    async with batching(hangs) as batcher:
        photo = Photo()
        seen = weakref.ref(photo)
        (sent,) = start(batcher, [photo])
        del photo
        with contextlib.suppress(EngineStalled):
            await sent
        del sent
        await settle()
        gc.collect()
        assert seen() is None
