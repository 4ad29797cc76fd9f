"""Has another version compute copies of callers' images in the background, and compares its answers with theirs.

Callers never wait for it. It has a stream, a queue and a thread of its own, which come after the callers' threads, so a
version that hangs or fails takes nothing from them but the time of cores that they share. It computes one copy at a
time, and begins only while none of the callers' images waits and the next one would find a free stream beside it. It
bounds how many copies wait and how much memory these hold.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, get_args

from prometheus_client import CollectorRegistry

from condconv_serve.domain import (
    Copies,
    MadeRow,
    ModelInfo,
    ModelSource,
    Row,
    RowAnswer,
    ServedModel,
    Tensors,
    Timings,
)
from condconv_serve.errors import (
    DeadlineExceeded,
    EngineStalled,
    InferenceFailed,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
    ServiceError,
    VersionNotFound,
)
from condconv_serve.imaging import ImageDecoder
from condconv_serve.imaging.given_pixels import row_of_pixels
from condconv_serve.inference.batching import Batcher, Priority
from condconv_serve.inference.runner import BatchRunner
from condconv_serve.inference.streams import StreamPool
from condconv_serve.machine.threads import yield_to_other_threads
from condconv_serve.shadow.comparison import COMPARED, Comparer
from condconv_serve.shadow.counts import Outcome, PairTally, ShadowCounts
from condconv_serve.shadow.pauses import Pauses
from condconv_serve.telemetry.logs import ContextThreads
from condconv_serve.telemetry.metrics import Metrics

MAX_ROWS: Final = 64
"""Most copies that wait or are being computed."""
MAX_BYTES: Final = 64 * 2**20
"""Most bytes of rows, images and answers that these hold."""
WAIT_SECONDS: Final = 10.0
"""A copy that isn't computed by then is dropped."""
MAX_BATCH_SIZE: Final = 1
"""Callers who come while a batch is computed share the cores with it, so batches are as short as can be."""
YIELD_STEPS: Final = 2
"""The streams of callers yield by one step."""
_SECONDS_TO_END: Final = 1.0
_NOT_SERVED: Final = (ModelNotFound, VersionNotFound, ModelUnavailable)
logger = logging.getLogger(__name__)


class Callers(Protocol):
    """The batcher of callers' images."""

    @property
    def saturated(self) -> bool:
        """Whether more of them wait than can be computed at once."""
        ...

    async def until_idle(self) -> None:
        """Wait until none of them waits, and the next one finds a free stream, though one more is in use."""
        ...


class HeldModels(ModelSource, Protocol):
    """Where versions are found."""

    def hold(self, model: ServedModel) -> AbstractContextManager[ServedModel]:
        """Keep a model loaded for longer than a lease that the caller already has."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copied:
    """An image that a version has answered.

    Attributes:
        model: the version.
        made: the row.
        copies: what other versions need.
        answer: what the caller gets.
    """

    model: ServedModel
    made: MadeRow
    copies: Copies
    answer: RowAnswer

    @property
    def nbytes(self) -> int:
        """The memory that `kept` takes."""
        answer = sum(values.nbytes for values in _compared(self.answer).values())
        return self.made.row.nbytes + len(self.copies.image or b"") + answer

    def kept(self) -> _Copied:
        """The same in memory of its own: a row's may soon be another row's, and an answer's is its whole batch's."""
        row, tensors = self.made.row, _compared(self.answer)
        return replace(
            self,
            made=replace(self.made, row=row if row.flags.owndata else row.copy(), copies=None),
            answer=replace(self.answer, tensors={name: values.copy() for name, values in tensors.items()}),
        )


def _compared(answer: RowAnswer) -> Tensors:
    return {name: values for name, values in answer.tensors.items() if name in COMPARED}


class _Skipped(Exception):
    """A copy isn't compared."""

    def __init__(self, outcome: Outcome, problem: str | None = None) -> None:
        super().__init__(outcome)
        self.outcome, self.problem = outcome, problem


class Shadow:
    """Computes copies, and counts what came of them.

    Use it as an async context manager. Leaving the block drops the copies that wait.
    """

    def __init__(
        self,
        models: HeldModels,
        *,
        stall_timeout: float,
        max_pixels: int,
        metrics: Metrics,
        callers: Callers,
        observe: Callable[[ModelInfo, RowAnswer], None] = lambda model, row: None,
    ) -> None:
        """Prepare.

        Args:
            models: where versions are found.
            stall_timeout: seconds that a batch may take.
            max_pixels: as for `ImageDecoder`.
            metrics: counts copies and what they show.
            callers: their images go first.
            observe: gets what the other version answered, for its routing statistics; called on the event loop.
        """
        self._models = models
        self._metrics = metrics
        self._callers = callers
        self._observe = observe
        # Copies are no callers' images: their batches and stalls must not be among those of the service.
        apart = Metrics(CollectorRegistry())
        self._streams = StreamPool(
            1, stall_timeout=stall_timeout, metrics=apart, name="shadow", yield_steps=YIELD_STEPS
        )
        self._runner = BatchRunner(self._streams, hold=models.hold)
        self._batcher: Batcher[ServedModel, Row, Tensors] = Batcher(
            self._compute,
            streams=1,
            max_batch_size=MAX_BATCH_SIZE,
            max_queue_rows=MAX_ROWS,
            drain_timeout=_SECONDS_TO_END,
            metrics=apart,
            label_of=lambda model: model.name,
            identity_of=lambda model: (model.name, model.version),
        )
        self._threads = ContextThreads(
            1, thread_name_prefix="shadow-compare", initializer=yield_to_other_threads, initargs=(YIELD_STEPS,)
        )
        self._decoder = ImageDecoder(self._threads, max_pixels=max_pixels)
        self._pauses = Pauses()
        self._tallies: dict[tuple[str, str, str], PairTally] = {}
        self._comparers: dict[tuple[str, str, str], tuple[ModelInfo, ModelInfo, Comparer]] = {}
        self._copies: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._computing = 0
        self._gives_way = False
        self._closed = True

    @property
    def busy(self) -> bool:
        """Whether a batch is being computed, or never came back."""
        return bool(self._computing)

    async def __aenter__(self) -> Shadow:
        """Take copies from now on."""
        self._streams.__enter__()
        await self._batcher.__aenter__()
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what waits."""
        self.close()
        await asyncio.gather(*self._copies, return_exceptions=True)
        await self._batcher.__aexit__(None, None, None)
        self._streams.__exit__(None, None, None)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Take no more copies, and drop those that wait."""
        self._closed = True
        for copy in self._copies:
            copy.cancel()

    def offer(self, model: ServedModel, made: MadeRow, answer: RowAnswer) -> None:
        """Have other versions compute an image that was answered, unless there is a reason not to. It never waits.

        Args:
            model: the version that answered.
            made: the row; it names the other versions.
            answer: what the caller gets.
        """
        copies = made.copies
        if copies is None or self._closed:
            return
        try:
            copied = _Copied(model=model, made=made, copies=copies, answer=answer)
            for version in copies.to:
                self._offer(copied, version)
        except Exception:  # a defect of ours must not spoil the caller's answer
            logger.exception("a copy of an image for %s was lost", model.name)

    async def read(self, name: str) -> list[ShadowCounts]:
        """The figures of a model's versions, in order."""
        found = [tally.read() for key, tally in list(self._tallies.items()) if key[0] == name]
        return sorted(found, key=lambda counts: (int(counts.version), int(counts.shadow)))

    def forget(self, name: str, version: str) -> None:
        """Drop the figures of a version that has gone, or was loaded anew; on any thread."""
        self._pauses.forget(name, version)
        for key in [key for key in list(self._tallies) if key[0] == name and version in key[1:]]:
            self._tallies.pop(key, None)
            self._comparers.pop(key, None)
            self._metrics.forget_shadow(key, outcomes=get_args(Outcome))

    def _offer(self, copied: _Copied, version: str) -> None:
        model, copies = copied.model, copied.copies
        if version == model.version:
            return
        key = model.name, model.version, version
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = PairTally(*key)
        try:
            shadow = self._models.get(model.name, version)
        except _NOT_SERVED as error:
            self._count(tally, "not_served", str(error))
            return
        if copies.is_pixels or model.info.preprocessing.makes_rows_like(shadow.info.preprocessing):
            copies = replace(copies, image=None)  # it needn't be kept in memory
        copied = replace(copied, copies=copies)
        size = copied.nbytes
        if self._callers.saturated:
            self._count(tally, "busy")
        elif self._pauses.paused(model.name, version):
            self._count(tally, "paused")
        elif len(self._copies) >= MAX_ROWS or self._bytes + size > MAX_BYTES:
            self._count(tally, "full")
        else:
            copy = asyncio.get_running_loop().create_task(self._copy(copied.kept(), version, tally))
            self._bytes += size
            self._copies.add(copy)
            copy.add_done_callback(lambda done: self._ended(done, size))

    def _ended(self, copy: asyncio.Task[None], size: int) -> None:
        self._copies.discard(copy)
        self._bytes -= size

    def _count(self, tally: PairTally, outcome: Outcome, problem: str | None = None) -> None:
        if self._counts(tally):
            tally.skip(outcome, problem=problem)
            self._metrics.shadow_rows.labels(tally.model, tally.version, tally.shadow, outcome).inc()

    def _counts(self, tally: PairTally) -> bool:
        """Whether its versions are still those that are served."""
        return self._tallies.get((tally.model, tally.version, tally.shadow)) is tally

    async def _copy(self, copied: _Copied, version: str, tally: PairTally) -> None:
        try:
            await self._compare(copied, version, tally)
        except _Skipped as skipped:
            self._count(tally, skipped.outcome, skipped.problem)
        except _NOT_SERVED as error:
            self._count(tally, "not_served", str(error))
        except DeadlineExceeded:
            self._count(tally, "busy" if self._gives_way else "late")
        except QueueFull:
            self._count(tally, "busy")
        except ServiceError as error:
            self._count(tally, "failed", str(error))
        except Exception:
            logger.exception("a copy for %s/%s met an unexpected error", copied.model.name, version)
            self._count(tally, "failed", "Something unexpected happened; the log says what.")

    async def _compare(self, copied: _Copied, version: str, tally: PairTally) -> None:
        if not self._counts(tally):
            return
        deadline = time.monotonic() + WAIT_SECONDS
        with self._models.lease(copied.model.name, version) as shadow:
            comparer = self._comparer(copied.model.info, shadow.info)
            made = await self._row(copied, shadow, deadline)
            with self._batcher.admit(shadow, 1, priority=Priority.LOW) as admission:
                found = await self._batcher.submit(made.row, admission, deadline=deadline)
            answer = RowAnswer(
                tensors=found.output,
                timings=Timings(decode=made.seconds, queue=found.queue, inference=found.inference, total=0.0),
                batch_size=found.batch_size,
                placement=made.placement,
            )
            self._observe(shadow.info, answer)
            loop = asyncio.get_running_loop()
            comparison = await loop.run_in_executor(self._threads, comparer.compare, copied.answer, answer)
        if not self._counts(tally):
            return
        tally.add(comparison)
        self._metrics.count_shadow(
            (tally.model, tally.version, tally.shadow),
            agreement=comparison.agreement,
            distance=comparison.distance,
            routing=list(comparison.routing.values()),
        )

    def _comparer(self, ours: ModelInfo, theirs: ModelInfo) -> Comparer:
        key = ours.name, ours.version, theirs.version
        known = self._comparers.get(key)
        if known is None or known[0] is not ours or known[1] is not theirs:
            try:
                known = self._comparers[key] = ours, theirs, Comparer(ours, theirs)
            except ValueError as error:
                raise _Skipped("other_task", str(error)) from error
        return known[2]

    async def _row(self, copied: _Copied, shadow: ServedModel, deadline: float) -> MadeRow:
        """The row for the other version: the same one if it takes the same, else a new one of the image's file."""
        ours, theirs = copied.model.info.preprocessing, shadow.info.preprocessing
        if copied.copies.is_pixels:
            if ours.image_size != theirs.image_size:
                raise _Skipped("other_input", f"It takes pixels of {theirs.image_size} x {theirs.image_size}.")
            return MadeRow(row_of_pixels(copied.made.row, shadow.info), placement=copied.made.placement)
        if ours.makes_rows_like(theirs):
            return copied.made
        image = copied.copies.image
        if image is None:
            raise _Skipped("other_input", "It crops or resizes images in another way, and the file is no longer here.")
        return await self._decoder.decode(image, shadow, deadline=deadline)

    async def _compute(self, model: ServedModel, rows: Sequence[Row]) -> Sequence[Tensors | Exception]:
        self._gives_way = True
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._callers.until_idle()
        except TimeoutError:
            raise QueueFull("Callers' images wait for the engine.") from None
        self._gives_way = False
        self._computing += 1
        try:
            outputs = await self._runner(model, rows)
        except EngineStalled as error:  # the engine still computes, as it does if this task is cancelled
            self._pauses.hung(model.name, model.version)
            for tally in self._tallies.values():
                if (tally.model, tally.shadow) == (model.name, model.version):
                    tally.tell(str(error))  # its copies may all have been too late to tell it
            self._log_pause(model)
            raise
        except Exception:
            self._computing -= 1
            self._pauses.failed(model.name, model.version)
            self._log_pause(model)
            raise
        self._computing -= 1
        self._pauses.succeeded(model.name, model.version)
        return [_Skipped("not_finite", str(row)) if isinstance(row, InferenceFailed) else row for row in outputs]

    def _log_pause(self, model: ServedModel) -> None:
        if self._pauses.paused(model.name, model.version):
            logger.warning(
                "%s/%s can't compute copies of requests; it gets none for a while", model.name, model.version
            )
