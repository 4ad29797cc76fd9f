"""Streams: threads that compute one batch at a time each, and the watch over them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from condconv_serve.errors import EngineStalled
from condconv_serve.machine.threads import yield_to_other_threads
from condconv_serve.telemetry.metrics import Metrics

Result = TypeVar("Result")
Job = tuple[Callable[[int], Any], "Future[Any]"]
logger = logging.getLogger(__name__)


class StreamPool:
    """Runs batches on `streams` threads and replaces a thread that hangs.

    Use as a context manager; leaving it ends the threads.
    """

    def __init__(
        self, streams: int, *, stall_timeout: float, metrics: Metrics, name: str = "stream", yield_steps: int = 1
    ) -> None:
        """Prepare; threads start when the block is entered.

        Args:
            streams: number of threads.
            stall_timeout: seconds after which a batch is given up and its thread replaced.
            metrics: counts stalls.
            name: of the threads and in the log.
            yield_steps: how far the threads come after others, see `yield_to_other_threads`.
        """
        self._streams = streams
        self._stall_timeout = stall_timeout
        self._metrics = metrics
        self._name, self._yield_steps = name, yield_steps
        self._free: asyncio.Queue[_Stream] = asyncio.Queue()

    async def run(self, compute: Callable[[int], Result]) -> Result:
        """Run a function on a free stream; it is given the stream's number, from 0.

        Raises:
            EngineStalled: it took longer than the stall timeout.
        """
        stream = await self._free.get()
        future = stream.submit(compute)
        try:
            async with asyncio.timeout(self._stall_timeout) as limit:
                result: Result = await asyncio.wrap_future(future)
        except TimeoutError:
            if not limit.expired():  # what was computed raised it
                raise
            # A thread can't be ended from outside. If it ever comes back, it ends. Another thread takes its number.
            stream.close()
            stream = self._new(stream.number)
            self._metrics.stream_stalls.inc()
            number, seconds = stream.number, self._stall_timeout
            logger.error("%s %d gave no answer in %g s and was replaced", self._name, number, seconds)
            raise EngineStalled(f"The engine gave no answer in {self._stall_timeout:g} s.", retry_after=1.0) from None
        finally:
            self._free.put_nowait(stream)
        return result

    def __enter__(self) -> StreamPool:
        """Start the threads."""
        for number in range(self._streams):
            self._free.put_nowait(self._new(number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads that are free; none else is running by then."""
        while not self._free.empty():
            self._free.get_nowait().close()

    def _new(self, number: int) -> _Stream:
        return _Stream(number, name=self._name, yield_steps=self._yield_steps)


class _Stream:
    """One thread with its jobs. A daemon, so that a hanging batch can't keep the process from ending."""

    def __init__(self, number: int, *, name: str, yield_steps: int) -> None:
        self.number = number
        self._yield_steps = yield_steps
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, compute: Callable[[int], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._jobs.put((compute, future))
        return future

    def close(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        yield_to_other_threads(self._yield_steps)
        while job := self._jobs.get():
            compute, future = job
            try:
                result = compute(self.number)
            except BaseException as error:
                _settle(future.set_exception, error)
            else:
                _settle(future.set_result, result)
            del job, compute, future


def _settle(setter: Callable[[Any], None], value: Any) -> None:
    """Set a future's outcome unless it has been given up meanwhile."""
    try:
        setter(value)
    except Exception as error:
        logger.warning("a batch that had been given up ended after all: %s", type(error).__name__)
