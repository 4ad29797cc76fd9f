"""Work on several threads at once, whose results come as they are ready."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int
) -> Iterator[tuple[Item, Result]]:
    """Do work for each item, and yield items with results, in whatever order they are ready.

    Items are taken from their iterator on the caller's thread, a few ahead. To find one may take long, so results that
    are ready come first. Whoever stops early needn't wait for what is under way, nor does the process.

    Raises:
        BaseException: what `work` raised, as soon as that is known.
    """
    todo: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()
    given_up = threading.Event()

    def run() -> None:
        while (item := todo.get()) is not None and not given_up.is_set():
            try:
                done.put((item, work(item), None))
            except BaseException as error:
                done.put((item, None, error))

    for number in range(threads):
        threading.Thread(target=run, name=f"job-{number}", daemon=True).start()
    coming, under_way, more = iter(items), 0, True
    try:
        while more or under_way:
            if more and under_way < 2 * threads and done.empty():
                item = next(coming, None)
                more = item is not None
                if item is not None:
                    todo.put(item)
                    under_way += 1
            elif under_way:
                asked, result, error = done.get()
                under_way -= 1
                if error is not None:
                    raise error
                yield asked, result  # type: ignore[misc]  # there is one if there is no error
    finally:
        given_up.set()
        for _ in range(threads):
            todo.put(None)
