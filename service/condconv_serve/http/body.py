"""A request's body: how many bytes are read, and how long we wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from condconv_serve.errors import BodyTooLarge, RequestTimeout

_DISCARD_FACTOR = 4
_DISCARD_SECONDS = 10.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body into memory.

    Raises:
        BodyTooLarge: it has more than `max_bytes`.
        RequestTimeout: it pauses or takes too long; `PatientBody` decides this for every route.
    """
    chunks: list[bytes] = []
    size = 0
    stream = request.stream()
    async for chunk in stream:
        size += len(chunk)
        if size > max_bytes:
            await _discard(stream, size, max_bytes * _DISCARD_FACTOR)
            raise BodyTooLarge(f"The body has more than {max_bytes} bytes, the most that is allowed.")
        chunks.append(chunk)
    return b"".join(chunks)


async def _discard(stream: AsyncGenerator[bytes, None], size: int, most: int) -> None:
    """Read on and throw away: a client that is still sending would be reset before it could read our answer."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in stream:
                size += len(chunk)
                if size > most:
                    return
    except (TimeoutError, RequestTimeout, ClientDisconnect):
        return


class PatientBody:
    """Receives a request's body, but doesn't wait without end.

    Once the body is complete, `receive` waits until the client leaves.

    Attributes:
        timed_out: whether the body was given up.
    """

    def __init__(self, receive: Receive, *, pause: float, total: float) -> None:
        """Receive by `receive`; the body may pause for `pause` seconds, and take `total` seconds in all."""
        self._receive = receive
        self._pause = pause
        self._total = total
        self._end: float | None = None
        self._complete = False
        self.timed_out = False

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            RequestTimeout: the client sent nothing for too long, or takes too long in all.
        """
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._end = self._end or now + self._total
        try:
            async with asyncio.timeout_at(min(now + self._pause, self._end)):
                message = await self._receive()
        except TimeoutError as error:
            self.timed_out = True
            late = asyncio.get_running_loop().time() >= self._end
            raise RequestTimeout(
                f"The body did not arrive within {self._total:g} seconds."
                if late
                else f"The body is incomplete, and nothing more of it came for {self._pause:g} seconds."
            ) from error
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message
