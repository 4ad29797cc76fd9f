"""Whatever the order of events: every row has exactly one outcome, and no limit is passed."""

import asyncio
import math
import time
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.errors import DeadlineExceeded, InferenceFailed, QueueFull, WaitTooLong
from condconv_serve.inference.batching import Priority
from tests.unit.inference.batching.rows import Engine, batching, settle

LONG = 3600.0
"""Seconds that no run takes, however slow the machine is."""
SECONDS = st.sampled_from([math.inf, math.inf, LONG, 0.001])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 6), st.sampled_from("ab"), st.sampled_from(Priority), SECONDS),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("finish"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
    ),
    max_size=40,
)


class Watched(Engine):
    """Checks each batch when it starts."""

    def __init__(self, *, cancelled, streams, max_batch_size, **options):
        super().__init__(held=True, **options)
        self.cancelled, self.streams, self.max_batch_size = cancelled, streams, max_batch_size
        self.finished = Counter()
        self.priorities = {}

    async def __call__(self, key, rows):
        assert self.running < self.streams
        assert 1 <= len(rows) <= self.max_batch_size
        assert rows == sorted(rows, key=lambda row: (self.priorities[row], row)), "the less urgent came first"
        assert {row % 2 for row in rows} == {"ab".index(key)}, "a row of another key"
        assert not self.cancelled & set(rows), "a row whose sender has gone"
        outputs = await super().__call__(key, rows)
        self.finished.update(rows)
        return outputs


@settings(deadline=None, max_examples=150)
@given(
    steps=STEPS,
    guilty=st.sets(st.integers(0, 60), max_size=6),
    streams=st.integers(1, 3),
    max_batch_size=st.integers(1, 5),
    max_queue_rows=st.integers(1, 12),
)
def test_random_orders(steps, guilty, streams, max_batch_size, max_queue_rows):
    asyncio.run(play(steps, guilty, streams, max_batch_size, max_queue_rows))


async def play(steps, guilty, streams, max_batch_size, max_queue_rows):
    cancelled = set()
    engine = Watched(guilty=guilty, cancelled=cancelled, streams=streams, max_batch_size=max_batch_size)
    numbers = {"a": iter(range(0, 1000, 2)), "b": iter(range(1, 1000, 2))}  # even rows have key a, odd ones b
    rows, deadlines, requests = {}, {}, []

    async def request(key, count, admission, deadline):
        with admission:
            mine = [next(numbers[key]) for _ in range(count)]
            tasks = [asyncio.create_task(batcher.submit(row, admission, deadline=deadline)) for row in mine]
            deadlines.update(dict.fromkeys(mine, deadline))
            engine.priorities.update(dict.fromkeys(mine, admission.priority))
            rows.update(zip(mine, tasks, strict=True))
            await asyncio.gather(*tasks, return_exceptions=True)

    limits = {"streams": streams, "max_batch_size": max_batch_size, "max_queue_rows": max_queue_rows}
    async with batching(engine, priority_ageing=LONG, **limits) as batcher:
        for action, number, *details in steps:
            waiting = batcher.read("condconv_queue_rows")
            if action == "send":
                key, priority, seconds = details
                deadline = time.monotonic() + seconds
                try:
                    admission = batcher.admit(key, number, priority=priority, deadline=deadline)
                except QueueFull:
                    assert waiting + number > max_queue_rows
                except WaitTooLong:
                    assert seconds < 1
                else:
                    assert waiting + number <= max_queue_rows
                    requests.append(asyncio.create_task(request(key, number, admission, deadline)))
            elif action == "cancel" and rows:
                row = list(rows)[number % len(rows)]
                if rows[row].cancel():
                    cancelled.add(row)
            elif action == "finish":
                engine.let_go(number)
            else:
                await settle(number)
            assert 0 <= batcher.read("condconv_queue_rows") <= max_queue_rows
        await settle(1)  # let the last requests begin
        engine.release()
    await asyncio.gather(*requests)

    assert (batcher.read("condconv_queue_rows"), batcher.read("condconv_rows_in_flight")) == (0, 0)
    assert all(task.done() for task in rows.values())
    assert max(engine.finished.values(), default=0) <= 1, "a row was computed twice"
    for row, task in rows.items():
        if task.cancelled():
            assert row in cancelled
        elif isinstance(task.exception(), DeadlineExceeded):
            assert deadlines[row] <= time.monotonic()
        elif isinstance(task.exception(), InferenceFailed):
            assert row in guilty
        else:
            assert task.result().output == 10 * row
            assert row not in guilty
