"""A request's body: how many bytes are read, how long we wait for them, and what they were before compression."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import Message, Receive

from condconv_serve.errors import BodyTooLarge, Draining, RequestTimeout
from condconv_serve.http.encodings import decompressed, encoding_of


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a body into memory, and decompress it.

    A body that is declared to be too long, or in an unknown encoding, isn't asked for. If one turns out to be too long,
    the guard reads the rest of it after the answer.

    Raises:
        BodyTooLarge: it has more than `max_bytes`, before or after it is decompressed.
        UnsupportedEncoding, MalformedBody: it can't be decompressed.
        RequestTimeout, Draining: as `PatientBody.receive`, which decides this for every route.
    """
    encoding = encoding_of(", ".join(request.headers.getlist("content-encoding")))
    too_large = BodyTooLarge(f"The body has more than {max_bytes} bytes, the most that is allowed.")
    if int(request.headers.get("content-length", "").lstrip("0") or 0) > max_bytes:  # `int` takes 4300 digits
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large
        chunks.append(chunk)
    body = b"".join(chunks)
    return body if encoding is None else await decompressed(body, encoding, max_bytes=max_bytes)


class OpenBodies:
    """The bodies that are being received: how long each may take, and a way to give them all up.

    Attributes:
        pause: seconds that a body may pause.
        total: seconds that a body may take.
        given_up: whether none is waited for any more.
    """

    def __init__(self, *, pause: float = 30.0, total: float = 300.0) -> None:
        """None yet."""
        self.pause = pause
        self.total = total
        self._waits: set[asyncio.Timeout] = set()
        self.given_up = False

    def give_up(self) -> None:
        """Wait for no body any more; called on the event loop."""
        self.given_up = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)

    @asynccontextmanager
    async def waiting_until(self, when: float) -> AsyncGenerator[None, None]:
        """Raise `TimeoutError` at that time of the event loop, or when bodies are given up."""
        async with asyncio.timeout_at(0 if self.given_up else when) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)


class PatientBody:
    """Receives a request's body, but doesn't wait without end.

    Once the body is complete, `receive` waits until the client leaves.

    Attributes:
        asked_for: whether any of it was to be received.
        timed_out: whether the body was given up.
    """

    def __init__(self, receive: Receive, *, bodies: OpenBodies) -> None:
        """Receive by `receive`; the body is one of `bodies`."""
        self._receive = receive
        self._bodies = bodies
        self._end: float | None = None
        self._complete = False
        self.asked_for = False
        self.timed_out = False

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            RequestTimeout: the client sent nothing for too long, or takes too long in all.
            Draining: the service ends before the body has.
        """
        self.asked_for = True
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._end = self._end or now + self._bodies.total
        try:
            async with self._bodies.waiting_until(min(now + self._bodies.pause, self._end)):
                message = await self._receive()
        except TimeoutError as error:
            self.timed_out = True
            if self._bodies.given_up:
                raise Draining(
                    "The service is shutting down, and the body is still incomplete.", retry_after=1.0
                ) from error
            late = asyncio.get_running_loop().time() >= self._end
            raise RequestTimeout(
                f"The body did not arrive within {self._bodies.total:g} seconds."
                if late
                else f"The body is incomplete, and nothing more of it came for {self._bodies.pause:g} seconds."
            ) from error
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message
