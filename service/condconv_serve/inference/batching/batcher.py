"""Pulls a batch from the queue when a stream is free, runs it, and gives every row its own result."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from condconv_serve.errors import (
    CapacityError,
    InferenceFailed,
    OutOfMemory,
    ServiceError,
    WaitTooLong,
)
from condconv_serve.inference.batching.deadlines import Deadlines
from condconv_serve.inference.batching.health import EngineHealth
from condconv_serve.inference.batching.key_queue import QueuedRow, Receiver
from condconv_serve.inference.batching.limits import BatchLimits
from condconv_serve.inference.batching.policy import Priority
from condconv_serve.inference.batching.queue import Admission, RowQueue
from condconv_serve.inference.batching.rate import RowRate
from condconv_serve.telemetry.metrics import Metrics

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Output = TypeVar("Output")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowResult(Generic[Output]):
    """The result of one row; times in seconds. `inference` is that of the whole batch."""

    output: Output
    queue: float
    inference: float
    batch_size: int


class Batcher(Generic[Key, Row, Output]):
    """Batches rows with the same key, and runs up to `streams` batches at once.

    Use it as an async context manager. Leaving the block refuses new rows, and finishes those that wait.
    """

    def __init__(
        self,
        run: Callable[[Key, Sequence[Row]], Awaitable[Sequence[Output | Exception]]],
        *,
        streams: int,
        max_batch_size: int,
        max_queue_rows: int,
        metrics: Metrics,
        batch_timeout: float = 0.0,
        priority_ageing: float = 5.0,
        drain_timeout: float | None = None,
        label_of: Callable[[Key], str] = str,
        identity_of: Callable[[Key], Hashable] = lambda key: key,
    ) -> None:
        """Prepare. Nothing runs until the block is entered.

        Args:
            run: computes one batch and returns one output per row, in order, or the error of a row that has none.
            streams: batches that may run at the same time.
            max_batch_size: most rows per batch.
            max_queue_rows: most rows admitted and not yet in a batch.
            metrics: counts batches and rows.
            batch_timeout: seconds from its first row's arrival that a small batch may wait for more rows.
            priority_ageing: seconds of waiting that make up for one step of priority.
            drain_timeout: seconds that leaving the block may take; None means no limit.
            label_of: the label of a key's rows in metrics, such as the model's name. Many keys may share one.
            identity_of: what is computed for a key, such as a model's name and version. Speed and batch limits are
                learned for each identity on its own. It is remembered for minutes, so it should not hold weights.
        """
        self._run = run
        self._streams = streams
        self._max_batch_size = max_batch_size
        self._drain_timeout = drain_timeout
        self._metrics = metrics
        self._label_of = label_of
        self._identity_of = identity_of
        self._queue: RowQueue[Key, Row, RowResult[Output]] = RowQueue(
            max_rows=max_queue_rows, ageing=priority_ageing, batch_timeout=batch_timeout
        )
        self._limits = BatchLimits(max_batch_size)
        self._rate = RowRate(streams)
        self._deadlines = Deadlines()
        self._tasks: list[asyncio.Task[None]] = []
        self._rows_in_flight = 0
        self.health = EngineHealth()
        metrics.queue_rows.set_function(lambda: len(self._queue))
        metrics.rows_in_flight.set_function(lambda: self._rows_in_flight)
        metrics.predicted_wait_seconds.set_function(self.predicted_wait)

    async def __aenter__(self) -> Batcher[Key, Row, Output]:
        """Start the streams."""
        self._tasks = [asyncio.create_task(self._stream(), name=f"stream-{i}") for i in range(self._streams)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the admitted rows if there is time, then end the streams."""
        self.close()
        _, unfinished = await asyncio.wait(self._tasks, timeout=self._drain_timeout)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Admit nothing more."""
        self._queue.close()

    @property
    def rows(self) -> int:
        """Rows that have been admitted, wait, or are being computed."""
        return len(self._queue) + self._rows_in_flight

    @property
    def saturated(self) -> bool:
        """Whether more rows wait than the streams could take at once."""
        return len(self._queue) > self._streams * self._max_batch_size

    @property
    def spare_rows(self) -> int:
        """How many more rows may be admitted before the queue is half full."""
        return self._queue.spare_rows

    async def until_idle(self) -> None:
        """Wait until no row waits or has been admitted, and a stream is free beside the one that may be used now."""
        await self._queue.until_idle(min(2, self._streams))

    def predicted_wait(self, priority: Priority = Priority.LOW) -> float:
        """Seconds until the rows in the queue that are at least this urgent are computed."""
        return self._rate.wait((self._identity_of(key), rows) for key, rows in self._queue.backlog(priority))

    def check(self, key: Key, rows: int, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf) -> None:
        """Refuse early what `admit` would refuse now.

        It takes no room, so `admit` may still refuse later. It is cheap: call it before you read a request's body.

        Args:
            key: such as the model. A batch holds rows of one key.
            rows: how many.
            priority: how urgent they are.
            deadline: when their sender stops waiting, on the monotonic clock in seconds.

        Raises:
            QueueFull: there is not enough room for all.
            WaitTooLong: rows are ahead of them, so they would not be computed before their deadline.
            Draining: the batcher is closed.
        """
        if rows > self._queue.free_rows:
            raise self._queue.refusal(rows, retry_after=self._seconds_to_empty)
        self._refuse_late(key, rows, priority, deadline)

    def admit(
        self, key: Key, rows: int, *, priority: Priority = Priority.NORMAL, deadline: float = math.inf
    ) -> Admission[Key]:
        """Take room for `rows` rows before you spend work on them. Arguments and errors are those of `check`."""
        self.check(key, rows, priority=priority, deadline=deadline)
        return self._queue.admit(key, rows, priority)

    def _seconds_to_empty(self) -> float:
        return self.predicted_wait() or 1.0

    def _refuse_late(self, key: Key, rows: int, priority: Priority, deadline: float) -> None:
        if deadline == math.inf or self._queue.is_idle:  # estimates may be wrong, and only a batch can put them right
            return
        remaining = deadline - time.monotonic()
        if self._rate.most(len(self._queue), rows) <= remaining:
            return
        ahead = self.predicted_wait(priority)
        wait = ahead + self._rate.own(self._identity_of(key), rows)
        if wait > remaining:
            raise WaitTooLong(
                f"The answer would take about {wait:.2g} s, but must be there in {max(remaining, 0):.2g} s.",
                retry_after=ahead or 1.0,
            )

    async def submit(self, row: Row, admission: Admission[Key], *, deadline: float = math.inf) -> RowResult[Output]:
        """Queue one row and wait for its outcome. Cancelling takes the row out of the queue.

        Raises:
            DeadlineExceeded: it was not computed by the deadline.
            InferenceFailed: the row could not be computed, even alone.
            CapacityError: the engine hung, or found no memory even for this row alone.
        """
        future: asyncio.Future[RowResult[Output]] = asyncio.get_running_loop().create_future()
        queued = self.put(row, admission, future, deadline=deadline)
        try:
            return await future
        finally:
            self.forget(queued)

    def put(
        self,
        row: Row,
        admission: Admission[Key],
        receiver: Receiver[RowResult[Output]],
        *,
        deadline: float = math.inf,
    ) -> QueuedRow[Key, Row, RowResult[Output]]:
        """Queue one row without waiting for it. When its receiver is done, call `forget`.

        Args:
            row: it.
            admission: its room.
            receiver: gets its result, or one of the errors that `submit` raises.
            deadline: when its sender stops waiting, on the monotonic clock in seconds.
        """
        queued = QueuedRow(admission.key, row, receiver, time.monotonic(), deadline, admission.priority)
        self._queue.put(queued, admission)
        self._deadlines.watch(queued)
        return queued

    def forget(self, row: QueuedRow[Key, Row, RowResult[Output]]) -> None:
        """The receiver of a row is done. If the row still waits, it is taken out."""
        self._deadlines.forget(row)
        self._queue.discard(row)

    def _limit_of(self, key: Key) -> int:
        return self._limits.of(self._identity_of(key))

    async def _stream(self) -> None:
        while batch := await self._queue.pull(self._limit_of):
            rows = len(batch)
            self._rows_in_flight += rows
            try:
                error = await self._compute(batch)
            except Exception as defect:  # a defect of ours must not end the stream
                logger.exception("a batch of %d rows was lost", rows)
                error = defect
                while batch:
                    self._fail(batch.pop(), defect)
            finally:
                self._rows_in_flight -= rows
                batch.clear()  # else the rows would stay in memory until the next batch
            if error is not None:
                self.health.failed(str(error) if isinstance(error, ServiceError) else type(error).__name__)
                error = None  # where it was raised there are the rows, too

    async def _compute(self, batch: Sequence[QueuedRow[Key, Row, RowResult[Output]]]) -> Exception | None:
        """Run a batch; if it fails, halve it until only the guilty rows have failed.

        Returns:
            An error if no row could be computed.
        """
        batch = [row for row in batch if not row.receiver.done()]  # senders may have gone since it was pulled
        if not batch:
            return None
        key, started = batch[0].key, time.monotonic()
        label = self._label_of(key)
        try:
            outputs = await self._run(key, [row.row for row in batch])
            if len(outputs) != len(batch):
                raise InferenceFailed(f"The engine answered {len(outputs)} of {len(batch)} images.")
        except (OutOfMemory, MemoryError):
            return await self._after_out_of_memory(batch)
        except CapacityError as error:  # no row is guilty
            for row in batch:
                self._fail(row, error)
            return error
        except Exception as error:
            logger.exception("a batch of %d rows failed", len(batch))
            self._metrics.batch_failures.labels(label, "error").inc()
            return await self._in_halves(batch, error)
        seconds = time.monotonic() - started
        self.health.succeeded()
        full = len(batch) == self._limit_of(key)
        self._rate.note(self._identity_of(key), rows=len(batch), seconds=seconds, full=full)
        self._metrics.batch_size.labels(label).observe(len(batch))
        for row, output in zip(batch, outputs, strict=True):
            if row.receiver.done():  # its sender may have gone
                continue
            if isinstance(output, Exception):
                row.receiver.set_exception(output)
            else:
                row.receiver.set_result(RowResult(output, started - row.enqueued_at, seconds, len(batch)))
        return None

    async def _after_out_of_memory(self, batch: Sequence[QueuedRow[Key, Row, RowResult[Output]]]) -> Exception | None:
        key = batch[0].key
        label = self._label_of(key)
        limit = self._limits.lower(self._identity_of(key), len(batch))
        logger.warning("no memory for %d rows of %s; batches of up to %d from now on", len(batch), label, limit)
        self._metrics.batch_failures.labels(label, "out_of_memory").inc()
        return await self._in_halves(batch, OutOfMemory("There is too little memory for this image.", retry_after=5.0))

    async def _in_halves(
        self, batch: Sequence[QueuedRow[Key, Row, RowResult[Output]]], error: Exception
    ) -> Exception | None:
        if len(batch) == 1:
            self._fail(batch[0], error)
            return error
        middle = len(batch) // 2
        errors = [await self._compute(half) for half in (batch[:middle], batch[middle:])]
        return error if all(errors) else None

    @staticmethod
    def _fail(row: QueuedRow[Key, Row, RowResult[Output]], error: Exception) -> None:
        known = (
            error if isinstance(error, ServiceError) else InferenceFailed("The engine could not compute this image.")
        )

        def tell() -> None:
            if not row.receiver.done():
                row.receiver.set_exception(known)

        # A turn later: whoever hears of it finds it in `health`.
        asyncio.get_running_loop().call_soon(tell)
