"""Streams: the threads on which batches are computed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Result = TypeVar("Result")


class StreamPool:
    """The threads on which batches are computed, one per stream."""

    def __init__(self, streams: int) -> None:
        """Create `streams` threads."""
        self.streams = streams
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="stream")

    async def run(self, compute: Callable[[], Result]) -> Result:
        """Run a function on a free stream."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, compute)

    def __enter__(self) -> StreamPool:
        """Hold the threads."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
