"""A clock of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timer:
    """Calls something after a while, unless it is stopped before; it holds what it calls no longer than that."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """It doesn't run yet."""
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        """Whether the call is still to come."""
        return self._handle is not None

    def start(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call after so many seconds, whatever was to be before."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._ring, callback)

    def stop(self) -> None:
        """Don't call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self, callback: Callable[[], None]) -> None:
        self._handle = None
        callback()
