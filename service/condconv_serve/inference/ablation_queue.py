"""Ablations beside the ordinary traffic: one at a time, on a thread with the lowest priority."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import wait
from contextlib import asynccontextmanager
from contextvars import copy_context
from types import TracebackType

from condconv_serve.deadline import ending_at
from condconv_serve.domain import Ablated, Ablation, RoutingOverrides, Row, ServedModel
from condconv_serve.errors import AblationBusy, DeadlineExceeded, InferenceFailed, ServiceError
from condconv_serve.machine.memory import release_memory
from condconv_serve.machine.threads import LoneThread, yield_to_other_threads

MAX_WAITING = 4
MAX_LOADED = 1
"""Models kept ready for ablations; each takes about as much memory as its engine."""
logger = logging.getLogger(__name__)


def _come_last() -> None:
    yield_to_other_threads(3)


class AblationQueue:
    """Implements `condconv_serve.domain.Ablator`: computes one image with many routings, unless too many wait.

    Use as a context manager; leaving it stops what is running.
    """

    def __init__(
        self,
        load: Callable[[str, str], Ablation],
        *,
        max_waiting: int = MAX_WAITING,
        max_loaded: int = MAX_LOADED,
        closing_seconds: float = 2.0,
        prepare_thread: Callable[[], None] = _come_last,
        release_memory: Callable[[], None] = release_memory,
    ) -> None:
        """Prepare. Models are loaded when they are first needed.

        Args:
            load: prepares a model, by name and version; takes seconds.
            max_waiting: ablations waiting or running at once; more are refused.
            max_loaded: models kept ready.
            closing_seconds: how long leaving waits for what is running; a load can't be stopped.
            prepare_thread: called first on the thread that computes.
            release_memory: gives freed memory back to the system; called after each load and each release.
        """
        self._load = load
        self._max_waiting = max_waiting
        self._max_loaded = max_loaded
        self._closing_seconds = closing_seconds
        self._release_memory = release_memory
        self._loaded: OrderedDict[tuple[str, str], Ablation] = OrderedDict()
        self._waiting = 0
        self._seconds = 1.0
        self._closing = threading.Event()
        self._thread = LoneThread("ablation", prepare_thread)

    async def check(self) -> None:
        """Refuse now if an ablation would be refused.

        Raises:
            AblationBusy: as many as allowed are waiting already.
        """
        if self._waiting >= self._max_waiting:
            raise AblationBusy(
                f"{self._waiting} ablations are waiting already, which is the limit.",
                retry_after=self._waiting * self._seconds,
            )

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Take a place until the block ends: from before the image is decoded until the ablation is done.

        Errors are those of `check`.
        """
        await self.check()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def ablate(
        self, model: ServedModel, row: Row, overrides: RoutingOverrides, *, deadline: float = math.inf
    ) -> Ablated:
        """Compute a row with other routings, within `admit`. Cancelling stops it.

        Args:
            model: whose row it is.
            row: `[image_size, image_size, 3]`.
            overrides: the routings.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.

        Raises:
            DeadlineExceeded: it was not done in time.
            InferenceFailed: the network could not be computed.
        """
        gone = threading.Event()
        asked = time.monotonic()
        try:
            async with ending_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(
                    self._thread, copy_context().run, self._compute, model, row, overrides, asked, gone
                )
        finally:
            gone.set()

    def _compute(
        self, model: ServedModel, row: Row, overrides: RoutingOverrides, asked: float, gone: threading.Event
    ) -> Ablated:
        started = time.monotonic()

        def stopped() -> bool:
            return gone.is_set() or self._closing.is_set()

        try:
            output = None if stopped() else self._ready(model)(row, overrides, stopped=stopped)
        except ServiceError:
            raise
        except Exception as error:
            logger.exception("an ablation of %s/%s failed", model.name, model.version)
            raise InferenceFailed("The engine could not compute this ablation.") from error
        if output is None:
            raise DeadlineExceeded("The ablation was given up.")
        self._seconds = time.monotonic() - started
        return Ablated(output=output, queue=started - asked, inference=self._seconds)

    def _ready(self, model: ServedModel) -> Ablation:
        """The model's ablation. If it must be loaded, it may replace another one. Only the one thread calls this."""
        place = (model.name, model.version)
        if place in self._loaded:
            self._loaded.move_to_end(place)
            return self._loaded[place]
        while len(self._loaded) >= self._max_loaded:
            self._loaded.popitem(last=False)[1].close()
        started = time.monotonic()
        self._loaded[place] = self._load(*place)
        self._release_memory()
        logger.info("%s/%s made ready for ablations in %.1f s", *place, time.monotonic() - started)
        return self._loaded[place]

    def forget(self, name: str, version: str) -> None:
        """Release a version that is no longer served."""
        if (name, version) not in self._loaded and not self._thread.busy:
            return

        def drop() -> None:
            if (loaded := self._loaded.pop((name, version), None)) is not None:
                loaded.close()
                self._release_memory()

        self._thread.submit(drop)

    def __enter__(self) -> AblationQueue:
        """Nothing to do: the thread starts with the first ablation."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the running ablation at its next small batch, and wait for that."""
        self._closing.set()
        closed = self._thread.submit(self._close_all)
        self._thread.shutdown(wait=False)
        wait([closed], timeout=self._closing_seconds)

    @property
    def busy(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.busy

    def _close_all(self) -> None:
        while self._loaded:
            self._loaded.popitem()[1].close()
