"""Errors as answers, for where no application can answer. Each front decides what they look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from condconv_serve.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Names of headers are in lower case; they include the body's length and type."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def encode(self, extra_headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
        """The answer in HTTP/1.1, as the last one on its connection."""
        headers = (*extra_headers, *self.headers, (b"connection", b"close"))
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[self.status], *lines, b"\r\n", self.body])

    async def send(self, send: Send) -> None:
        """Send it by ASGI."""
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body})


ErrorRenderer = Callable[[ServiceError], Answer]
"""Turns an error into an answer, in the shape of one front."""
