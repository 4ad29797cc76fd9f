import asyncio
import logging

import pytest

from condconv_serve.errors import CorruptImage, Draining, EngineStalled, InferenceFailed, QueueFull
from tests.unit.inference.batching.rows import Engine, batching, send, settle, start


async def test_a_lone_row_starts_at_once():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=8, streams=2) as batcher:
        (task,) = start(batcher, [3])
        await settle()
        assert engine.batches == [("a", [3])]
        engine.release()
        result = await task
    assert (result.output, result.batch_size) == (30, 1)
    assert result.queue >= 0
    assert result.inference >= 0


async def test_under_load_batches_grow_up_to_the_limit_in_order_of_arrival():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=4) as batcher:
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1, 2])
        await settle()
        engine.let_go()
        await settle()
        tasks += start(batcher, range(3, 12))
        await settle()
        engine.release()
        results = await asyncio.gather(*tasks)
    assert [rows for _, rows in engine.batches] == [[0], [1, 2], [3, 4, 5, 6], [7, 8, 9, 10], [11]]
    assert [result.output for result in results] == [10 * row for row in range(12)]
    assert [result.batch_size for result in results] == [1, 2, 2, 4, 4, 4, 4, 4, 4, 4, 4, 1]


async def test_only_rows_of_one_key_ride_together():
    engine = Engine(held=True)
    async with batching(engine) as batcher:
        tasks = start(batcher, [0], "x")
        await settle()
        for row, key in enumerate("ababca", start=1):
            tasks += start(batcher, [row], key)
        await settle()
        engine.release()
        await asyncio.gather(*tasks)
    assert engine.batches == [("x", [0]), ("a", [1, 3, 6]), ("b", [2, 4]), ("c", [5])]


async def test_two_free_streams_share_what_comes_at_once():
    engine = Engine(held=True)
    async with batching(engine, streams=2) as batcher:
        await settle()
        tasks = start(batcher, range(4))
        await settle()
        assert engine.batches == [("a", [0, 1]), ("a", [2, 3])]
        assert engine.running == 2
        engine.release()
        await asyncio.gather(*tasks)


async def test_no_more_batches_than_streams_at_the_same_time():
    engine = Engine(held=True)
    async with batching(engine, streams=2, max_batch_size=1) as batcher:
        tasks = start(batcher, range(5))
        for finished in range(4):
            await settle()
            assert (engine.running, len(engine.batches)) == (2, 2 + finished)
            engine.let_go()
        engine.release()
        await asyncio.gather(*tasks)


async def test_a_full_queue_refuses_until_rows_are_in_a_batch():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=2, max_queue_rows=3) as batcher:
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1, 2, 3])
        await settle()
        with pytest.raises(QueueFull):
            await send(batcher, 4)
        engine.let_go()
        await settle()
        tasks += start(batcher, [5, 6])
        await settle()
        with pytest.raises(QueueFull):
            await send(batcher, 7)
        engine.release()
        assert [r.output for r in await asyncio.gather(*tasks)] == [0, 10, 20, 30, 50, 60]


async def test_cancelled_rows_are_never_computed():
    engine = Engine(held=True)
    async with batching(engine, max_queue_rows=4) as batcher:
        first, *tasks = start(batcher, range(4))
        await settle()
        tasks[0].cancel()
        tasks[2].cancel()
        await settle()
        tasks += start(batcher, [4, 5])  # their room is free again
        await settle()
        engine.release()
        await asyncio.gather(first, *tasks, return_exceptions=True)
    assert sorted(row for _, rows in engine.batches for row in rows) == [0, 1, 2, 3, 4, 5]


async def test_a_row_cancelled_in_the_moment_when_a_stream_becomes_free_is_not_computed():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=1) as batcher:
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1, 2])
        await settle()
        engine.release()
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.batches == [("a", [0]), ("a", [2])]
    assert isinstance(outcomes[1], asyncio.CancelledError)


async def test_rows_that_ride_with_a_cancelled_one_are_answered():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=3) as batcher:
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1, 2, 3])
        await settle()
        engine.let_go()
        await settle()
        assert engine.batches[-1] == ("a", [1, 2, 3])
        tasks[2].cancel()
        await settle()
        engine.release()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcomes[i].output for i in (0, 1, 3)] == [0, 10, 30]
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert len(engine.batches) == 2


@pytest.mark.parametrize(
    ("guilty", "batches"),
    [
        ({6}, [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [6], [7]]),
        ({0}, [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [4, 5, 6, 7]]),
        (
            {1, 6},
            [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [6], [7]],
        ),
    ],
)
async def test_a_failing_batch_is_halved_until_only_the_guilty_rows_fail(guilty, batches):
    engine = Engine(guilty=guilty)
    async with batching(engine, max_batch_size=8) as batcher:
        outcomes = await asyncio.gather(*start(batcher, range(8)), return_exceptions=True)
    assert [rows for _, rows in engine.batches] == batches
    for row, outcome in enumerate(outcomes):
        if row in guilty:
            assert isinstance(outcome, InferenceFailed)
        else:
            assert outcome.output == 10 * row


async def test_rows_cancelled_while_their_batch_fails_are_not_tried_again():
    engine = Engine(held=True, guilty={1})
    async with batching(engine, max_batch_size=4) as batcher:
        tasks = start(batcher, range(4))
        await settle()
        tasks[2].cancel()
        tasks[3].cancel()
        await settle()
        engine.release()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [rows for _, rows in engine.batches] == [[0, 1, 2, 3], [0, 1], [0], [1]]


@pytest.mark.parametrize("answers", [0, 2, 4])
async def test_an_engine_that_answers_too_few_or_too_many_rows(answers, caplog):
    caplog.set_level(logging.ERROR, "condconv_serve.inference.batching.batcher")
    calls = []

    async def run(_, rows):
        calls.append(len(rows))
        return [7] * (answers if len(rows) == 3 else 1 if rows == [2] else 0)

    async with batching(run) as batcher:
        outcomes = await asyncio.gather(*start(batcher, range(3)), return_exceptions=True)
    assert calls == [3, 1, 2, 1, 1]
    assert [str(outcome) for outcome in outcomes[:2]] == ["The engine answered 0 of 1 images."] * 2
    assert all(isinstance(outcome, InferenceFailed) for outcome in outcomes[:2])
    assert outcomes[2].output == 7
    assert f"answered {answers} of 3 images" in caplog.text


async def test_errors_meant_for_the_caller_are_passed_on():
    async with batching(Engine(guilty={1}, error=CorruptImage)) as batcher:
        with pytest.raises(CorruptImage, match=r"^secret of \[1\]$"):
            await send(batcher, 1)


async def test_an_engine_without_capacity_fails_the_batch_as_a_whole():
    engine = Engine(guilty={2}, error=EngineStalled)
    async with batching(engine) as batcher:
        outcomes = await asyncio.gather(*start(batcher, range(4)), return_exceptions=True)
        assert engine.sizes == [4], "no row is guilty, so none is looked for"
        assert {type(outcome) for outcome in outcomes} == {EngineStalled}
        assert (await send(batcher, 5)).output == 50


@pytest.mark.parametrize("error", [ValueError, LookupError, RuntimeError])
async def test_other_errors_are_logged_but_not_told(error, caplog):
    async with batching(Engine(guilty={1}, error=error)) as batcher:
        with pytest.raises(InferenceFailed) as caught:
            await send(batcher, 1)
        assert (await send(batcher, 2)).output == 20, "the stream lives on"
    assert "secret" not in str(caught.value)
    assert "secret of [1]" in caplog.text


async def test_leaving_finishes_what_was_admitted_and_queued():
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=2, streams=2) as batcher:
        tasks = start(batcher, range(7))
        await settle()
        asyncio.get_running_loop().call_later(0, engine.release)
    assert engine.running == 0
    assert sorted(row for _, rows in engine.batches for row in rows) == list(range(7))
    assert [result.output for result in await asyncio.gather(*tasks)] == [10 * row for row in range(7)]


async def test_nothing_is_admitted_after_the_close():
    engine = Engine(held=True)
    async with batching(engine) as batcher:
        tasks = start(batcher, [0, 1])
        await settle()
        batcher.close()
        with pytest.raises(Draining):
            batcher.admit("a", 1)
        engine.release()
        assert [result.output for result in await asyncio.gather(*tasks)] == [0, 10]
    with pytest.raises(Draining):
        batcher.admit("a", 1)


@pytest.mark.parametrize("used", [0, 1, 2])
async def test_an_admission_that_is_outstanding_at_the_close(used):
    engine = Engine()
    leave = asyncio.Event()

    async def run_until_told(ready):
        async with batching(engine, streams=2) as batcher:
            ready.set_result(batcher)
            await leave.wait()

    ready = asyncio.get_running_loop().create_future()
    life = asyncio.create_task(run_until_told(ready))
    batcher = await ready
    with batcher.admit("a", 2) as admission:
        leave.set()
        await settle()
        assert not life.done()
        results = await asyncio.gather(*(batcher.submit(row, admission) for row in range(used)))
        assert [result.output for result in results] == [10 * row for row in range(used)]
    await life


async def test_leaving_in_the_moment_when_the_last_row_comes():
    engine = Engine()
    async with batching(engine, streams=3) as batcher:
        await settle()
        with batcher.admit("a", 1) as admission:
            task = asyncio.create_task(batcher.submit(1, admission))
            await asyncio.sleep(0)
    assert (await task).output == 10


async def test_metrics():
    engine = Engine(held=True, guilty={5})
    async with batching(engine, max_batch_size=4) as batcher:
        read = batcher.read
        assert (read("condconv_queue_rows"), read("condconv_rows_in_flight")) == (0, 0)
        tasks = start(batcher, [0])
        await settle()
        tasks += start(batcher, [1, 2, 3, 4, 5, 6])
        await settle()
        assert (read("condconv_queue_rows"), read("condconv_rows_in_flight")) == (6, 1)
        with batcher.admit("a", 3):
            assert read("condconv_queue_rows") == 9
        engine.let_go()
        await settle()
        assert (read("condconv_queue_rows"), read("condconv_rows_in_flight")) == (2, 4)
        engine.release()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert (read("condconv_queue_rows"), read("condconv_rows_in_flight")) == (0, 0)
    sizes = [read("condconv_batch_size_bucket", model="a", le=le) for le in ("1.0", "2.0", "4.0")]
    assert sizes == [2, 2, 3], "batches of 1, 4, and what remained of the failed one: 1"
    assert read("condconv_batch_size_sum", model="a") == 6


@pytest.mark.parametrize(("streams", "busy"), [(1, 0), (2, 0), (3, 1), (8, 6)])
async def test_it_is_idle_while_the_next_row_finds_a_free_stream_beside_one_more_batch(streams, busy):
    engine = Engine(held=True)
    async with batching(engine, max_batch_size=1, streams=streams) as batcher:
        tasks = start(batcher, range(busy + 1))
        await settle()
        waiting = asyncio.create_task(batcher.until_idle())
        await settle()
        assert not waiting.done()  # one batch too many is in flight
        engine.let_go()
        await waiting
        engine.release()
        await asyncio.gather(*tasks)
