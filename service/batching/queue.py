"""A bounded queue of rows, from which batches of equal key are pulled; on one event loop, without locks or polling."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from service.batching.policy import rows_to_take
from service.errors import Draining, QueueFull

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class QueuedRow(Generic[Key, Row, Result]):
    """A row with the future that its sender awaits; `enqueued_at` is on the monotonic clock, in seconds."""

    key: Key
    row: Row
    future: asyncio.Future[Result]
    enqueued_at: float
    waiting: bool = True


class Admission:
    """Room for some rows, granted before they are decoded; what isn't used goes back at the end of the block."""

    def __init__(self, rows: int, give_back: Callable[[int], None]) -> None:
        """Made by `RowQueue.admit`."""
        self._unused = rows
        self._give_back = give_back

    def use(self) -> None:
        """Spend the room of one row, which from now on waits in the queue."""
        if self._unused < 1:
            raise ValueError("More rows were put than had been admitted.")
        self._unused -= 1
        self._give_back(1)

    def __enter__(self) -> Admission:
        """Hold the room."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was not used."""
        unused, self._unused = self._unused, 0
        self._give_back(unused)


class RowQueue(Generic[Key, Row, Result]):
    """Rows in order of arrival. A batch holds rows of one key; the key of the oldest row is served first."""

    def __init__(self, *, max_rows: int) -> None:
        """Create an empty queue for at most `max_rows` rows, admitted ones included."""
        self._max_rows = max_rows
        self._rows: OrderedDict[Key, deque[QueuedRow[Key, Row, Result]]] = OrderedDict()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._waiting = 0
        self._closed = False
        self._reserved = 0

    def __len__(self) -> int:
        """Rows that wait or have been admitted."""
        return self._waiting + self._reserved

    def admit(self, rows: int) -> Admission:
        """Grant room for `rows` rows, all or none.

        Raises:
            QueueFull: there is not enough room.
            Draining: the queue is closed.
        """
        if self._closed:
            raise Draining("The service is shutting down and takes no new work.")
        if len(self) + rows > self._max_rows:
            raise QueueFull(
                f"{len(self)} of {self._max_rows} rows are waiting already, so {rows} more don't fit.", retry_after=1.0
            )
        self._reserved += rows
        return Admission(rows, self._give_back)

    def put(self, row: QueuedRow[Key, Row, Result], admission: Admission) -> None:
        """Append a row that has been admitted; if its sender cancels the future, it leaves the queue."""
        admission.use()
        self._rows.setdefault(row.key, deque()).append(row)
        self._waiting += 1
        row.future.add_done_callback(lambda _: self._discard(row))
        self._wake()

    async def pull(self, max_rows: int) -> list[QueuedRow[Key, Row, Result]]:
        """Wait for rows and take a batch of them, oldest first; empty when the queue is closed and done."""
        while not self._waiting:
            if self._closed and not self._reserved:
                return []
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            try:
                await idle
            finally:
                if idle in self._idle:
                    self._idle.remove(idle)
        key = min(self._rows, key=lambda key: self._rows[key][0].enqueued_at)
        rows = self._rows[key]
        count = rows_to_take(len(rows), free_streams=1 + len(self._idle), max_batch_size=max_rows)
        batch = [rows.popleft() for _ in range(count)]
        for row in batch:
            row.waiting = False
        if not rows:
            del self._rows[key]
        self._waiting -= count
        if self._waiting:
            self._wake()
        self._let_end()
        return batch

    def close(self) -> None:
        """Admit nothing more; what has been admitted is still served."""
        self._closed = True
        self._let_end()

    def _give_back(self, rows: int) -> None:
        self._reserved -= rows
        self._let_end()

    def _let_end(self) -> None:
        """Once a closed queue is empty, idle streams must look again, so that they can end."""
        if self._closed and not len(self):
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)

    def _wake(self) -> None:
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
                return

    def _discard(self, row: QueuedRow[Key, Row, Result]) -> None:
        if not row.waiting:
            return
        row.waiting = False
        rows = self._rows[row.key]
        rows.remove(row)
        if not rows:
            del self._rows[row.key]
        self._waiting -= 1
        self._let_end()
