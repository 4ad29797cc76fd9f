import asyncio
import gc
import math
import time
import weakref
from collections import Counter

import pytest

from condconv_serve.errors import DeadlineExceeded, Draining, QueueFull
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.batching.key_queue import QueuedRow
from condconv_serve.inference.batching.queue import RowQueue
from tests.unit.inference.batching.rows import settle

pytestmark = pytest.mark.usefixtures("_virtual_time")
HIGH, NORMAL, LOW = Priority


def new_row(row, key="a"):
    """A row that came at the time `row`."""
    return QueuedRow(key, row, asyncio.get_running_loop().create_future(), float(row))


def put(queue, *rows, key="a"):
    """Put rows that are admitted at once; returns them."""
    queued = [new_row(row, key) for row in rows]
    with queue.admit(key, len(rows)) as admission:
        for row in queued:
            queue.put(row, admission)
    return queued


async def pull(queue, most=4):
    return [row.row for row in await asyncio.wait_for(queue.pull(lambda _: most), 5)]


async def test_rows_leave_in_order_of_arrival():
    queue = RowQueue(max_rows=100)
    put(queue, *range(7))
    assert [await pull(queue), await pull(queue)] == [[0, 1, 2, 3], [4, 5, 6]]
    assert len(queue) == 0


async def test_a_batch_has_one_key_and_the_oldest_row_comes_first():
    queue = RowQueue(max_rows=100)
    for row, key in enumerate("abacab"):
        put(queue, row, key=key)
    assert [await pull(queue, 2) for _ in range(4)] == [[0, 2], [1, 5], [3], [4]]


@pytest.mark.parametrize("held", [1, 2, 3])
async def test_admitted_rows_take_room_before_they_are_put(held):
    queue = RowQueue(max_rows=4)
    put(queue, 0)
    with queue.admit("a", held):
        assert len(queue) == 1 + held
        room = 3 - held
        with pytest.raises(QueueFull, match=rf"^{1 + held} of 4 images are waiting already, so {room + 1} more don't"):
            queue.admit("a", room + 1)
        assert len(queue) == 1 + held, "a refused admission takes nothing"
        with queue.admit("a", room):
            assert len(queue) == 4
    assert len(queue) == 1


async def test_there_is_room_again_when_rows_have_been_pulled():
    queue = RowQueue(max_rows=2)
    put(queue, 0, 1)
    with pytest.raises(QueueFull):
        queue.admit("a", 1)
    assert queue.refusal(1, retry_after=lambda: 2.5).retry_after == 2.5
    assert await pull(queue, 1) == [0]
    put(queue, 2)
    assert await pull(queue) == [1, 2]


async def test_the_free_room_is_what_can_be_admitted():
    queue = RowQueue(max_rows=3)
    assert queue.free_rows == 3
    put(queue, 0)
    with queue.admit("a", 1):
        assert queue.free_rows == 1
        queue.admit("a", 1)
        assert queue.free_rows == 0
    assert queue.free_rows == 1
    queue.close()
    assert queue.free_rows == 0
    with pytest.raises(Draining):
        queue.admit("a", 1)


async def test_the_spare_room_is_what_leaves_half_of_it_free():
    queue = RowQueue(max_rows=5)
    assert queue.spare_rows == 3
    put(queue, 0)
    with queue.admit("a", 1):
        assert queue.spare_rows == 1
        with queue.admit("a", 2):
            assert queue.spare_rows == 0
    queue.close()
    assert queue.spare_rows == 0


async def test_unused_room_is_given_back_when_the_block_raises():
    queue = RowQueue(max_rows=3)

    def fail_half_way():
        with queue.admit("a", 3) as admission:
            queue.put(new_row(0), admission)
            raise LookupError

    with pytest.raises(LookupError):
        fail_half_way()
    assert len(queue) == 1
    assert await pull(queue) == [0]


async def test_rows_beyond_the_admission_are_refused_and_leave_no_trace():
    queue = RowQueue(max_rows=10)
    with queue.admit("a", 1) as admission:
        queue.put(new_row(0), admission)
        with pytest.raises(ValueError, match="More rows"):
            queue.put(new_row(1), admission)
    assert len(queue) == 1
    assert await pull(queue) == [0]


async def test_an_admission_ends_with_its_block():
    queue = RowQueue(max_rows=10)
    with queue.admit("a", 2) as admission:
        queue.put(new_row(0), admission)
    with pytest.raises(ValueError, match="More rows"):
        queue.put(new_row(1), admission)
    assert len(queue) == 1


async def test_rows_whose_sender_has_gone_leave_the_queue():
    queue = RowQueue(max_rows=4)
    rows = put(queue, 0, 1, 2, 3)
    queue.discard(rows[1])
    queue.discard(rows[2])
    queue.discard(rows[2])
    assert len(queue) == 2
    put(queue, 4, 5)
    assert await pull(queue) == [0, 3, 4, 5]


async def test_a_key_whose_rows_have_all_gone_is_passed_over():
    queue = RowQueue(max_rows=4)
    (gone,) = put(queue, 0, key="a")
    put(queue, 1, key="b")
    queue.discard(gone)
    assert await pull(queue) == [1]
    queue.discard(gone)
    assert len(queue) == 0


async def test_a_waiting_stream_wakes_for_each_row():
    queue = RowQueue(max_rows=10)
    for row in range(3):
        waiting = asyncio.create_task(pull(queue))
        await settle()
        assert not waiting.done()
        put(queue, row)
        assert await waiting == [row]


async def test_a_stream_woken_for_a_row_that_another_took_waits_on():
    queue = RowQueue(max_rows=10)
    waiting = asyncio.create_task(pull(queue))
    await settle()
    put(queue, 0)
    assert [row.row for row in await queue.pull(lambda _: 4)] == [0]  # at once, before the other one has its turn
    await settle()
    assert not waiting.done()
    put(queue, 1)
    assert await waiting == [1]


@pytest.mark.parametrize(
    ("streams", "rows", "batches"),
    [(2, 4, [2, 2]), (2, 3, [1, 2]), (2, 1, [1]), (3, 8, [2, 3, 3]), (4, 2, [1, 1]), (2, 20, [4, 4])],
)
async def test_free_streams_share(streams, rows, batches):
    queue = RowQueue(max_rows=100)
    waiting = [asyncio.create_task(pull(queue)) for _ in range(streams)]
    await settle()
    put(queue, *range(rows))
    await settle()
    taken = [task.result() for task in waiting if task.done()]
    assert sorted(map(len, taken)) == batches
    assert sorted(row for batch in taken for row in batch) == list(range(sum(batches)))
    for task in waiting:
        task.cancel()


async def test_a_closed_queue_admits_nothing_and_hands_out_the_rest():
    queue = RowQueue(max_rows=10)
    put(queue, 0, 1, 2)
    queue.close()
    with pytest.raises(Draining):
        queue.admit("a", 1)
    assert [await pull(queue, 2), await pull(queue, 2), await pull(queue, 2)] == [[0, 1], [2], []]


@pytest.mark.parametrize("streams", [1, 3])
async def test_closing_an_empty_queue_ends_all_streams(streams):
    queue = RowQueue(max_rows=10)
    waiting = [asyncio.create_task(pull(queue)) for _ in range(streams)]
    await settle()
    queue.close()
    assert await asyncio.gather(*waiting) == [[]] * streams


async def test_streams_wait_for_admissions_that_are_outstanding_at_the_close():
    queue = RowQueue(max_rows=10)
    waiting = [asyncio.create_task(pull(queue)) for _ in range(2)]
    with queue.admit("a", 2) as admission:
        await settle()
        queue.close()
        await settle()
        assert not any(task.done() for task in waiting)
        queue.put(new_row(0), admission)
        await settle()
        assert sum(task.done() for task in waiting) == 1
    assert sorted(await asyncio.gather(*waiting)) == [[], [0]]


async def test_a_stream_that_becomes_free_after_the_close_waits_for_outstanding_admissions():
    queue = RowQueue(max_rows=10)
    with queue.admit("a", 1) as admission:
        queue.close()
        waiting = asyncio.create_task(pull(queue))
        await settle()
        assert not waiting.done()
        queue.put(new_row(0), admission)
    assert await waiting == [0]
    assert await pull(queue) == []


async def test_the_last_row_of_a_closed_queue_ends_the_other_streams():
    queue = RowQueue(max_rows=10)
    waiting = [asyncio.create_task(pull(queue)) for _ in range(2)]
    await settle()
    put(queue, 0)
    queue.close()  # before the stream that was woken has had its turn
    assert sorted(await asyncio.gather(*waiting)) == [[], [0]]


async def test_a_closed_queue_whose_last_row_is_cancelled_ends_the_streams():
    queue = RowQueue(max_rows=10)
    rows = put(queue, 0, 1)
    queue.close()
    assert await pull(queue, 1) == [0]
    queue.discard(rows[1])
    assert await pull(queue) == []


def put_at(queue, row, *, key="a", priority=Priority.NORMAL, ago=0.0, deadline=math.inf):
    """Put a row that came some seconds ago."""
    queued = QueuedRow(key, row, asyncio.get_running_loop().create_future(), time.monotonic() - ago, deadline, priority)
    with queue.admit(key, 1, priority) as admission:
        queue.put(queued, admission)
    return queued


async def test_the_urgent_come_first_and_in_order():
    queue = RowQueue(max_rows=100)
    for row, priority in enumerate((LOW, NORMAL, HIGH, LOW, NORMAL, HIGH)):
        put_at(queue, row, priority=priority)
    assert await pull(queue, 6) == [2, 5, 1, 4, 0, 3]


async def test_waiting_makes_up_for_priority():
    queue = RowQueue(max_rows=100, ageing=5)
    put_at(queue, "old low", priority=LOW, ago=11.5)
    put_at(queue, "older normal", priority=NORMAL, ago=7)
    put_at(queue, "high", priority=HIGH, ago=1)
    put_at(queue, "normal", priority=NORMAL)
    put_at(queue, "low", priority=LOW, ago=2)
    assert await pull(queue, 5) == ["older normal", "old low", "high", "normal", "low"]


async def test_no_stream_of_urgent_rows_starves_a_low_one():
    queue = RowQueue(max_rows=100, ageing=0.05)
    put_at(queue, "low", priority=LOW)
    served = []
    while "low" not in served:
        put_at(queue, "high", priority=HIGH)
        put_at(queue, "high", priority=HIGH)
        await asyncio.sleep(0.005)
        served += await pull(queue, 1)
    assert len(served) <= 60, "twice the ageing, 20 rows, makes a low row as urgent as any; machines may be slow"


async def test_the_key_with_the_most_urgent_row_is_served_first():
    queue = RowQueue(max_rows=100)
    put_at(queue, 1, key="a", ago=1)
    put_at(queue, 2, key="b", priority=HIGH)
    assert await pull(queue) == [2]


async def test_a_flood_for_one_key_leaves_every_other_batch_to_another():
    queue = RowQueue(max_rows=100)
    for row in range(40):
        put_at(queue, row, key="flood", ago=10)
    served = []
    for row in range(4):
        put_at(queue, f"b{row}", key="b")
        served += [(await pull(queue, 4))[0] for _ in range(2)]
    assert [row for row in served if isinstance(row, str)] == ["b0", "b1", "b2", "b3"]
    assert [row for row in served if isinstance(row, int)] == [0, 4, 8, 12]


async def test_three_keys_take_turns():
    queue = RowQueue(max_rows=100)
    for row in range(6):
        for key in "abc":
            put_at(queue, f"{key}{row}", key=key)
    served = [(await pull(queue, 2))[0] for _ in range(9)]
    assert served == ["a0", "b0", "c0", "a2", "b2", "c2", "a4", "b4", "c4"]


async def test_a_flood_of_urgent_rows_for_one_key_does_not_starve_another_key():
    queue = RowQueue(max_rows=100, ageing=0.05)
    put_at(queue, "normal", key="b")
    served = []
    while "normal" not in served:
        put_at(queue, "high", key="a", priority=HIGH)
        put_at(queue, "high", key="a", priority=HIGH)
        await asyncio.sleep(0.005)
        served += await pull(queue, 1)
    assert len(served) <= 25


async def test_expired_rows_are_told_so_and_take_no_place_in_the_batch():
    queue = RowQueue(max_rows=100)
    expired = [put_at(queue, row, deadline=time.monotonic() - 1) for row in range(3)]
    put_at(queue, 3, deadline=time.monotonic() + 60)
    put_at(queue, 4)
    assert await pull(queue, 2) == [3, 4]
    assert {type(row.receiver.exception()) for row in expired} == {DeadlineExceeded}
    assert len(queue) == 0


async def test_a_stream_waits_on_if_all_have_expired():
    queue = RowQueue(max_rows=100)
    put_at(queue, 0, deadline=0).receiver.add_done_callback(lambda future: future.exception())
    waiting = asyncio.create_task(pull(queue))
    await settle()
    assert not waiting.done()
    assert len(queue) == 0
    put_at(queue, 1)
    assert await waiting == [1]


async def test_a_small_batch_waits_for_more_until_it_is_full():
    queue = RowQueue(max_rows=100, batch_timeout=5)
    waiting = asyncio.create_task(pull(queue, 3))
    for row in range(2):
        put_at(queue, row)
        await settle()
        assert not waiting.done()
    put_at(queue, 2)
    assert await waiting == [0, 1, 2]


async def test_a_small_batch_waits_no_longer_than_the_timeout_from_its_first_row():
    queue = RowQueue(max_rows=100, batch_timeout=60)
    waiting = asyncio.create_task(pull(queue, 8))
    put_at(queue, 0, ago=59.5)
    await settle()
    assert not waiting.done(), "half a second is left"
    put_at(queue, 1)
    async with asyncio.timeout(20):
        assert await waiting == [0, 1]


async def test_a_full_batch_of_one_key_does_not_wait_for_another_key():
    queue = RowQueue(max_rows=100, batch_timeout=5)
    put_at(queue, 0, key="slow")
    put_at(queue, 1, key="b")
    put_at(queue, 2, key="b")
    assert await pull(queue, 2) == [1, 2]


async def test_closing_lets_a_small_batch_go():
    queue = RowQueue(max_rows=100, batch_timeout=5)
    waiting = asyncio.create_task(pull(queue, 8))
    put_at(queue, 0)
    await settle()
    queue.close()
    assert await waiting == [0]
    assert await pull(queue) == []


def backlog(queue, *at_least):
    rows = Counter()
    for key, count in queue.backlog(*at_least):
        rows[key] += count
    return +rows


async def test_backlog_tells_rows_by_key_and_urgency():
    queue = RowQueue(max_rows=100)
    put_at(queue, 0, priority=LOW)
    put_at(queue, 1, priority=HIGH)
    put_at(queue, 2, key="b")
    with queue.admit("b", 5, HIGH), queue.admit("c", 2, LOW):
        assert backlog(queue) == {"a": 2, "b": 6, "c": 2}
        assert backlog(queue, HIGH) == {"a": 1, "b": 5}
        assert backlog(queue, NORMAL) == {"a": 1, "b": 6}
    assert backlog(queue) == {"a": 2, "b": 1}


async def test_a_small_batch_waits_for_admitted_rows_but_not_long():
    queue = RowQueue(max_rows=100, admitted_timeout=0.1)
    with queue.admit("a", 2) as admission:
        put_at(queue, 0)
        waiting = asyncio.create_task(pull(queue))
        await settle()
        assert not waiting.done()
        queue.put(QueuedRow("a", 1, asyncio.get_running_loop().create_future(), time.monotonic()), admission)
        await settle()
        assert not waiting.done(), "one more is to come"
        async with asyncio.timeout(20):
            assert await waiting == [0, 1]


async def test_a_small_batch_goes_as_soon_as_no_more_rows_come():
    queue = RowQueue(max_rows=100, admitted_timeout=5)
    with queue.admit("a", 1):
        put_at(queue, 0)
        waiting = asyncio.create_task(pull(queue))
        await settle()
        assert not waiting.done()
    assert await waiting == [0]


async def test_a_batch_does_not_wait_for_admitted_rows_of_another_key():
    queue = RowQueue(max_rows=100, admitted_timeout=5)
    with queue.admit("b", 1):
        put_at(queue, 0)
        assert await pull(queue) == [0]


async def test_waiting_until_nothing_waits_and_a_stream_is_free():
    queue = RowQueue(max_rows=100)
    waiting = asyncio.create_task(queue.until_idle())
    await settle()
    assert not waiting.done()  # no stream is there yet
    put(queue, 1)
    stream = asyncio.create_task(pull(queue))
    await settle()
    assert stream.done()
    assert not waiting.done()  # the stream is at work
    admission = queue.admit("a", 1)
    stream = asyncio.create_task(pull(queue))
    await settle()
    assert not waiting.done()  # a row is being decoded
    with admission:
        pass
    await asyncio.wait_for(waiting, 5)
    put(queue, 2)
    await stream


async def test_waiting_until_several_streams_are_free():
    queue = RowQueue(max_rows=100)
    waiting = asyncio.create_task(queue.until_idle(2))
    streams = [asyncio.create_task(pull(queue))]
    await settle()
    assert not waiting.done()
    streams.append(asyncio.create_task(pull(queue)))
    await asyncio.wait_for(waiting, 5)
    put(queue, 1)
    put(queue, 2)
    await asyncio.gather(*streams)


async def test_who_no_longer_waits_until_it_is_idle_leaves_nothing_behind(monkeypatch):
    queue, loop, made = RowQueue(max_rows=100), asyncio.get_running_loop(), []
    create = loop.create_future

    def create_future():
        future = create()
        made.append(weakref.ref(future))
        return future

    monkeypatch.setattr(loop, "create_future", create_future)
    waiting = asyncio.create_task(queue.until_idle())
    await settle()
    monkeypatch.undo()
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    await settle()
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None
