"""An executor of one thread that can be asked whether it is at work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class LoneThread(ThreadPoolExecutor):
    """Does one thing after the other, in the order in which they were submitted.

    What it does may take for ever, a load from a file system that hangs, say, and an interpreter can't end while one of
    its threads computes: whoever ends the process asks `busy`.
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
        """Whether anything is being done or waits to be."""
        return bool(self._futures)

    def close(self) -> None:
        """Begin nothing more; what is being done goes on."""
        self.shutdown(wait=False, cancel_futures=True)
