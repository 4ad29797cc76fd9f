"""A bounded queue of rows, from which batches of equal key are pulled; on one event loop, without locks or polling."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from condconv_serve.errors import CapacityError, DeadlineExceeded, Draining, QueueFull
from condconv_serve.inference.batching.key_queue import KeyQueue, QueuedRow
from condconv_serve.inference.batching.policy import Priority, rows_to_take

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Result = TypeVar("Result")


class Admission(Generic[Key]):
    """Room for some rows, taken before they are decoded. Room that isn't used goes back when the block ends."""

    def __init__(
        self, key: Key, rows: int, priority: Priority, give_back: Callable[[Admission[Key], int], None]
    ) -> None:
        """Made by `RowQueue.admit`."""
        self.key = key
        self.priority = priority
        self._unused = rows
        self._give_back = give_back

    def give_back_one(self) -> None:
        """Give back the room of one row: it takes a place in the queue now, or will never come.

        Raises:
            ValueError: all of it has been given back.
        """
        if self._unused < 1:
            raise ValueError("More rows were put than had been admitted.")
        self._unused -= 1
        self._give_back(self, 1)

    def close(self) -> None:
        """Give back what was not used."""
        if self._unused:
            unused, self._unused = self._unused, 0
            self._give_back(self, unused)

    def __enter__(self) -> Admission[Key]:
        """Hold the room."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was not used."""
        self.close()


class RowQueue(Generic[Key, Row, Result]):
    """Rows by key and priority.

    A batch holds rows of one key. The key with the most urgent row is served first. Keys that are equally urgent take
    turns, so that many rows of one key don't hold up the others.
    """

    def __init__(
        self, *, max_rows: int, ageing: float = 5.0, batch_timeout: float = 0.0, admitted_timeout: float = 0.02
    ) -> None:
        """Create an empty queue.

        Args:
            max_rows: most rows in it, admitted ones included.
            ageing: seconds of waiting that make up for one step of priority.
            batch_timeout: seconds from the first row's arrival that a batch may wait for more rows.
            admitted_timeout: the same, while rows have been admitted that are not here yet. They are being decoded.
                That is a better use of the cores than a small batch, which costs more per row.
        """
        self._max_rows = max_rows
        self._ageing = ageing
        self._batch_timeout = batch_timeout
        self._admitted_timeout = admitted_timeout
        self._queues: dict[Key, KeyQueue[Key, Row, Result]] = {}
        self._reserved: Counter[tuple[Key, Priority]] = Counter()
        self._rows = 0
        self._turn = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._until_idle: dict[asyncio.Future[None], int] = {}
        self._closed = False

    def __len__(self) -> int:
        """Rows that wait or have been admitted."""
        return self._rows

    def backlog(self, at_least: Priority = Priority.LOW) -> Iterator[tuple[Key, int]]:
        """Rows that wait or have been admitted, and are at least this urgent, by key; a key may come several times."""
        for key, waiting in self._queues.items():
            yield key, waiting.count(at_least)
        for (key, priority), count in self._reserved.items():
            if priority <= at_least:
                yield key, count

    @property
    def free_rows(self) -> int:
        """How many more rows would be admitted now; none once the queue is closed."""
        return 0 if self._closed else self._max_rows - self._rows

    @property
    def spare_rows(self) -> int:
        """How many more rows may be admitted before it is half full."""
        return max(0, self.free_rows - self._max_rows // 2)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is queued or admitted, and a stream waits for work."""
        return self._has_idle(1)

    def _has_idle(self, streams: int) -> bool:
        return not self._rows and len(self._idle) >= streams

    async def until_idle(self, streams: int = 1) -> None:
        """Wait until nothing is queued or admitted, and so many streams wait for work."""
        while not self._has_idle(streams):
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._until_idle[idle] = streams
            try:
                await idle
            finally:
                del self._until_idle[idle]

    def refusal(self, rows: int, *, retry_after: Callable[[], float | None] = lambda: None) -> CapacityError:
        """The error for `rows` more rows that can't be admitted now.

        Args:
            rows: how many.
            retry_after: says in how many seconds there is room. It is called only if the queue is full.

        Returns:
            `Draining` if the queue is closed, `QueueFull` if not.
        """
        if self._closed:
            return Draining("The service is shutting down and takes no new work.", retry_after=1.0)
        return QueueFull(
            f"{self._rows} of {self._max_rows} images are waiting already, so {rows} more don't fit.",
            retry_after=retry_after(),
        )

    def admit(self, key: Key, rows: int, priority: Priority = Priority.NORMAL) -> Admission[Key]:
        """Take room for `rows` rows (at least 1), all or none.

        Raises:
            QueueFull: there is not enough room for all.
            Draining: the queue is closed.
        """
        if rows > self.free_rows:
            raise self.refusal(rows)
        self._rows += rows
        self._reserved[key, priority] += rows
        return Admission(key, rows, priority, self._give_back)

    def put(self, row: QueuedRow[Key, Row, Result], admission: Admission[Key]) -> None:
        """Append an admitted row."""
        admission.give_back_one()
        if row.key not in self._queues:  # a new key comes before the key that was served last
            self._queues[row.key] = KeyQueue(self._turn - 1)
        self._queues[row.key].add(row)
        self._rows += 1
        self._wake_one()

    async def pull(self, max_batch_size: Callable[[Key], int]) -> list[QueuedRow[Key, Row, Result]]:
        """Wait for rows and take a batch of them.

        A row whose deadline has passed is answered with `DeadlineExceeded` instead.

        Args:
            max_batch_size: most rows per batch of a key.

        Returns:
            Rows of one key, the most urgent first; none when the queue is closed and empty.
        """
        while True:
            now = time.monotonic()
            key, look_again_at = self._choose(now, max_batch_size)
            if key is not None:
                if batch := self._take(key, now, max_batch_size(key)):
                    return batch
            elif self._closed and not self._rows:
                return []
            else:
                await self._sleep_until(look_again_at)

    def close(self) -> None:
        """Admit nothing more. Admitted rows are still served; batches no longer wait for more rows."""
        self._closed = True
        self._wake_all()

    def _choose(self, now: float, max_batch_size: Callable[[Key], int]) -> tuple[Key | None, float | None]:
        """The key to serve now, or when there will be one."""
        best, best_order, look_again_at = None, (math.inf, math.inf, math.inf), math.inf
        for key, waiting in self._queues.items():
            heads = waiting.heads()
            oldest = min(row.enqueued_at for row in heads)
            coming = any(reserved == key for reserved, _ in self._reserved)
            due_at = oldest + max(self._batch_timeout, self._admitted_timeout if coming else 0.0)
            if due_at > now and len(waiting) < max_batch_size(key) and not self._closed:
                look_again_at = min(look_again_at, due_at)
                continue
            order = (waiting.urgency(now, self._ageing), waiting.turn, oldest)
            if order < best_order:
                best, best_order = key, order
        return best, None if look_again_at == math.inf else look_again_at

    def _take(self, key: Key, now: float, max_batch_size: int) -> list[QueuedRow[Key, Row, Result]]:
        waiting = self._queues[key]
        count = rows_to_take(len(waiting), free_streams=1 + len(self._idle), max_batch_size=max_batch_size)
        batch: list[QueuedRow[Key, Row, Result]] = []
        while len(waiting) and len(batch) < count:
            row = waiting.pop(self._ageing)
            self._rows -= 1
            if row.receiver.done():  # its sender has just gone
                continue
            if row.deadline <= now:
                row.receiver.set_exception(DeadlineExceeded("The deadline passed while the image waited for its turn."))
            else:
                batch.append(row)
        self._turn += 1
        waiting.turn, waiting.served_at = self._turn, now
        if not len(waiting):
            del self._queues[key]
        if self._queues:
            self._wake_one()
        self._let_end()
        return batch

    async def _sleep_until(self, when: float | None) -> None:
        """Wait to be woken, at the latest at some time on the monotonic clock."""
        loop = asyncio.get_running_loop()
        idle: asyncio.Future[None] = loop.create_future()
        timer = None if when is None else loop.call_later(max(when - time.monotonic(), 0), _wake, idle)
        self._idle.append(idle)
        self._tell_idle()
        try:
            await idle
        finally:
            self._idle.remove(idle)
            if timer is not None:
                timer.cancel()

    def _give_back(self, admission: Admission[Key], rows: int) -> None:
        self._rows -= rows
        place = admission.key, admission.priority
        self._reserved[place] -= rows
        if not self._reserved[place]:
            del self._reserved[place]
            if self._queues:  # a batch may have waited for this row
                self._wake_one()
        self._let_end()

    def discard(self, row: QueuedRow[Key, Row, Result]) -> None:
        """Take a row out, if it still waits: its sender has gone, or waits no longer."""
        waiting = self._queues.get(row.key)
        if waiting is None or row not in waiting:
            return
        waiting.remove(row)
        self._rows -= 1
        if not len(waiting):
            del self._queues[row.key]
        self._let_end()

    def _wake_one(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
                return

    def _wake_all(self) -> None:
        for idle in self._idle:
            _wake(idle)

    def _let_end(self) -> None:
        """Once a closed queue is empty, idle streams must look again, so that they can end."""
        self._tell_idle()
        if self._closed and not self._rows:
            self._wake_all()

    def _tell_idle(self) -> None:
        for idle, streams in self._until_idle.items():
            if self._has_idle(streams):
                _wake(idle)


def _wake(idle: asyncio.Future[None]) -> None:
    if not idle.done():
        idle.set_result(None)
