"""Work on threads that keep nobody from leaving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def started(work: Callable[[], Answer]) -> Future[Answer]:
    """Do work on a thread of its own.

    The process may end before it, which a `ThreadPoolExecutor` wouldn't allow: after Ctrl-C nobody waits for a server.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="condconv-client", daemon=True).start()
    return future
