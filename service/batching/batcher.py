"""Pulls batches from the queue as streams become free, runs them, and gives every row its own outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from service.batching.queue import Admission, QueuedRow, RowQueue
from service.errors import CapacityError, InferenceFailed, ServiceError
from service.metrics import Metrics

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Output = TypeVar("Output")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowResult(Generic[Output]):
    """What became of one row; times in seconds. `inference` is that of the whole batch."""

    output: Output
    queue: float
    inference: float
    batch_size: int


class Batcher(Generic[Key, Row, Output]):
    """Batches rows of equal key and runs up to `streams` batches at once.

    Use as an async context manager: leaving the block admits nothing more, finishes what waits, and returns.
    """

    def __init__(
        self,
        run: Callable[[Key, Sequence[Row]], Awaitable[Sequence[Output]]],
        *,
        streams: int,
        max_batch_size: int,
        max_queue_rows: int,
        metrics: Metrics,
        name_of: Callable[[Key], str] = str,
    ) -> None:
        """Prepare; nothing runs before the block is entered.

        Args:
            run: computes one batch and returns one output per row, in order.
            streams: batches that may run at the same time.
            max_batch_size: most rows per batch.
            max_queue_rows: most rows admitted and not yet in a batch.
            metrics: counts batches and rows.
            name_of: a key's name in metrics.
        """
        self._run = run
        self._streams = streams
        self._max_batch_size = max_batch_size
        self._metrics = metrics
        self._name_of = name_of
        self._queue: RowQueue[Key, Row, RowResult[Output]] = RowQueue(max_rows=max_queue_rows)
        self._tasks: list[asyncio.Task[None]] = []
        metrics.queue_rows.set_function(lambda: len(self._queue))

    async def __aenter__(self) -> Batcher[Key, Row, Output]:
        """Start the streams."""
        self._tasks = [asyncio.create_task(self._stream(), name=f"stream-{i}") for i in range(self._streams)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what has been admitted, then end the streams."""
        self.close()
        await asyncio.gather(*self._tasks)

    def close(self) -> None:
        """Admit nothing more."""
        self._queue.close()

    def admit(self, rows: int) -> Admission:
        """Ask for room for `rows` rows before any work is spent on them.

        Raises:
            QueueFull: there is not enough room for all.
            Draining: the batcher is closed.
        """
        return self._queue.admit(rows)

    async def submit(self, key: Key, row: Row, admission: Admission) -> RowResult[Output]:
        """Queue one row and wait for its outcome. Cancelling takes the row out of the queue.

        Raises:
            InferenceFailed: the row could not be computed, even alone.
        """
        future: asyncio.Future[RowResult[Output]] = asyncio.get_running_loop().create_future()
        self._queue.put(QueuedRow(key, row, future, time.monotonic()), admission)
        return await future

    async def _stream(self) -> None:
        while batch := await self._queue.pull(self._max_batch_size):
            self._metrics.rows_in_flight.inc(len(batch))
            try:
                await self._compute(batch)
            finally:
                self._metrics.rows_in_flight.dec(len(batch))

    async def _compute(self, batch: Sequence[QueuedRow[Key, Row, RowResult[Output]]]) -> None:
        """Run a batch; if it fails, halve it until only the guilty rows have failed."""
        batch = [row for row in batch if not row.future.done()]  # senders may have gone since it was pulled
        if not batch:
            return
        key, started = batch[0].key, time.monotonic()
        try:
            outputs = await self._run(key, [row.row for row in batch])
            if len(outputs) != len(batch):
                raise InferenceFailed(f"The engine answered {len(outputs)} of {len(batch)} rows.")
        except CapacityError as error:  # no row is guilty
            for row in batch:
                self._fail(row, error)
            return
        except Exception as error:
            logger.exception("a batch of %d rows failed", len(batch))
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._compute(batch[:middle])
                await self._compute(batch[middle:])
            else:
                self._fail(batch[0], error)
            return
        seconds = time.monotonic() - started
        self._metrics.batch_size.labels(self._name_of(key)).observe(len(batch))
        for row, output in zip(batch, outputs, strict=True):
            if not row.future.done():  # its sender may have gone
                row.future.set_result(RowResult(output, started - row.enqueued_at, seconds, len(batch)))

    @staticmethod
    def _fail(row: QueuedRow[Key, Row, RowResult[Output]], error: Exception) -> None:
        if not row.future.done():
            known = isinstance(error, ServiceError)
            row.future.set_exception(error if known else InferenceFailed("The engine could not compute this image."))
