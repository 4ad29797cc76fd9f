"""Errors as answers, for where no application can make one; how they look is each front's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Send

from condconv_serve.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; names of headers are in lower case, and tell the body's length and type."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it by ASGI."""
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body})


ErrorRenderer = Callable[[ServiceError], Answer]
"""What makes an answer of an error, in the shape of one front."""
