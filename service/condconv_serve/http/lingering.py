"""Bytes that clients send after their answer: they are read and thrown away, up to limits (RFC 9112, 9.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import Gauge

from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.timer import Timer

_LAST_PAUSE = 1.0


class Leftovers:
    """Watches the bytes that come after their answer: how many, for how long, with which pauses.

    It holds its connection only while it reads, so that a connection that is over goes at once.

    Attributes:
        reading: whether such bytes are read now.
    """

    def __init__(self, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop, *, gauge: Gauge) -> None:
        """Prepare for one connection.

        Args:
            limits: of what is read.
            loop: runs the clock.
            gauge: counts the connections whose leftovers are read.
        """
        self._limits = limits
        self._pause = limits.linger_pause
        self._loop = loop
        self._gauge = gauge
        self._timer = Timer(loop)
        self._is_sent: Callable[[], bool] = _yes
        self._on_end: Callable[[], None] = _nothing
        self.reading = False
        self._bytes = 0
        self._pause_ends = self._all_ends = 0.0

    def begin(self, *, is_sent: Callable[[], bool], on_end: Callable[[], None]) -> None:
        """Read on from now, unless we do already.

        Args:
            is_sent: says whether the answer is out. Until then the client need not send.
            on_end: called at a limit.
        """
        if not self.reading:
            self.reading = True
            self._is_sent, self._on_end = is_sent, on_end
            self._gauge.inc()
            self._bytes = 0
            now = self._loop.time()
            self._pause_ends, self._all_ends = now + self._pause, now + self._limits.linger_timeout
            self._look()

    def add(self, size: int) -> None:
        """So many more bytes have come."""
        self._bytes += size
        self._pause_ends = self._loop.time() + self._pause
        if self._bytes > self._limits.linger_bytes:
            self._on_end()

    def hurry(self) -> None:
        """The server is about to end: wait for silent clients no longer than for a network's hiccup."""
        self._pause = min(self._pause, _LAST_PAUSE)
        if self.reading:
            self._pause_ends = min(self._pause_ends, self._loop.time() + self._pause)
            self._look()

    def stop(self) -> None:
        """They are complete, or the connection is lost."""
        if self.reading:
            self.reading = False
            self._is_sent, self._on_end = _yes, _nothing
            self._gauge.dec()
            self._timer.stop()

    def _look(self) -> None:
        now = self._loop.time()
        if not self._is_sent():
            self._pause_ends = now + self._pause
        left = min(self._pause_ends, self._all_ends) - now
        if left > 0:
            self._timer.start(left, self._look)  # not with each piece that comes: there may be thousands
        else:
            self._on_end()


def _yes() -> bool:
    return True


def _nothing() -> None:
    pass
