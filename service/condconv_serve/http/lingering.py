"""Closes connections so that no answer is lost, though the client is still sending.

If the server closed at once, bytes that come afterwards would reset the connection, and a reset takes the answer away
from a client that has not read it yet. A proxy in front of the server would report 502, and take the server for dead.
So the rest is read and thrown away, up to limits of bytes and seconds (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client import Gauge

from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.timer import Timer

_LAST_PAUSE = 1.0


class LingeringTransport(asyncio.Transport):
    """A connection's transport that closes in two steps while the client may be sending.

    `close()` first ends writing alone, so that the client sees the answer's end. From then on `is_closing()` is true.
    `end()` is the second step. A transport that can't be closed for writing alone (TLS) stays open until then.
    """

    def __init__(self, transport: asyncio.Transport, *, lingers: Callable[[], bool]) -> None:
        """Wrap a transport. `lingers` is asked when it is to be closed: whether the client may still be sending."""
        super().__init__()
        self._transport = transport
        self._lingers = lingers
        self._half_closed = False

    def close(self) -> None:
        """Close, in one step or begin with the first of two."""
        if self.is_closing():
            return
        if not self._lingers():
            self._transport.close()
            return
        self._half_closed = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def end(self) -> None:
        """Close, once what has been written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether nothing more will be written."""
        return self._half_closed or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows about itself."""
        return self._transport.get_extra_info(name, default)


class Leftovers:
    """Watches the bytes that come after their answer: how many, for how long, with which pauses.

    Attributes:
        reading: whether such bytes are read now.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        loop: asyncio.AbstractEventLoop,
        *,
        gauge: Gauge,
        is_sent: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        """Prepare for one connection.

        Args:
            limits: of what is read.
            loop: runs the clock.
            gauge: counts the connections whose leftovers are read.
            is_sent: says whether the answer is out. Until then the client need not send.
            on_end: called at a limit.
        """
        self._limits = limits
        self._pause = limits.linger_pause
        self._loop = loop
        self._gauge = gauge
        self._is_sent = is_sent
        self._on_end = on_end
        self._timer = Timer(loop, self._look)
        self.reading = False
        self._bytes = 0
        self._pause_ends = self._all_ends = 0.0

    def begin(self) -> None:
        """Read on from now, unless we do already."""
        if not self.reading:
            self.reading = True
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
            self._gauge.dec()
            self._timer.stop()

    def _look(self) -> None:
        now = self._loop.time()
        if not self._is_sent():
            self._pause_ends = now + self._pause
        left = min(self._pause_ends, self._all_ends) - now
        if left > 0:
            self._timer.start(left)  # not with each piece that comes: there may be thousands
        else:
            self._on_end()
