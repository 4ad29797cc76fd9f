"""Threads: which ones go first, and an executor of one thread that says whether it is busy."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_NICENESS = 5


def yield_to_other_threads(steps: int = 1) -> None:
    """Let the other threads of this process go before the calling one.

    Only Linux can do this. Threads that yield by more steps come after those that yield by fewer. It is for threads
    that compute without pause: the event loop needs little time, but needs it soon, or nobody gets an answer.
    """
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + steps * _NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


class LoneThread(ThreadPoolExecutor):
    """Does one thing at a time, in the order in which they were submitted.

    A thing may never end, such as a load from a file system that hangs. The interpreter can't end while a thread
    computes, so code that ends the process asks `busy` first.
    """

    def __init__(self, name: str, initializer: Callable[..., object], initargs: tuple[Any, ...] = ()) -> None:
        """Prepare; the thread starts with the first submission, and calls `initializer` first."""
        super().__init__(1, thread_name_prefix=name, initializer=initializer, initargs=initargs)
        self._futures: set[Future[Any]] = set()

    def submit(
        self, do: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Have something done."""
        future = super().submit(do, *args, **kwargs)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return bool(self._futures)

    def close(self) -> None:
        """Start nothing more. What runs already goes on."""
        self.shutdown(wait=False, cancel_futures=True)
