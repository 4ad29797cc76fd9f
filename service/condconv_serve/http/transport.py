"""What a connection is written to: an answer leaves as a whole, and closing takes none away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_HELD_BYTES = 16 * 1024
"""Larger writes are no heads of answers, and need no company."""


class AnswerTransport(asyncio.Transport):
    """A connection's transport that sends an answer's head with its body, and closes in two steps if it must.

    uvicorn writes head and body one after the other. If the process were killed in between, the client would have half
    an answer, and a proxy could not ask another server any more. So what is written first waits until more comes, or
    until the event loop's next turn.

    If the server closed a connection while the client is sending, bytes that come afterwards would reset it, and a
    reset takes the answer away from a client that has not read it yet. A proxy in front of the server would report 502,
    and take the server for dead. So `close()` first ends writing alone, so that the client sees the answer's end. From
    then on `is_closing()` is true. `end()` is the second step. A transport that can't be closed for writing alone (TLS)
    stays open until then.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, lingers: Callable[[], bool]
    ) -> None:
        """Wrap a transport.

        Args:
            transport: of the connection.
            loop: on which it runs.
            lingers: is asked when it is to be closed: whether the client may still be sending.
        """
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._lingers = lingers
        self._half_closed = False
        self._held = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; what is short waits for what comes with it."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(b"".join((held, data)))
        elif len(data) > _HELD_BYTES:
            self._transport.write(data)
        elif data:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close, in one step or begin with the first of two."""
        if self.is_closing():
            return
        self._flush()
        if not self._lingers():
            self._transport.close()
            return
        self._half_closed = True
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def end(self) -> None:
        """Close, once what has been written is sent."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held = b""
        self._transport.abort()

    def lost(self) -> None:
        """The connection is lost: ask nobody any more, and hold nobody."""
        self._lingers = _never

    def is_closing(self) -> bool:
        """Whether nothing more will be written."""
        return self._half_closed or self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return len(self._held) + self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows about itself."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)


def _never() -> bool:
    return False
