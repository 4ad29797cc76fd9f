"""Errors as answers, for where no application can answer. Each front decides what they look like."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from condconv_serve.errors import ServiceError
from condconv_serve.http.scope import REQUEST_ID_HEADER

logger = logging.getLogger("condconv_serve.access")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. Names of headers are in lower case; they include the body's length and type."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    async def send(self, send: Send) -> None:
        """Send it by ASGI."""
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": self.body})


ErrorRenderer = Callable[[ServiceError], Answer]
"""Turns an error into an answer, in the shape of one front."""
RendererOf = Callable[[bytes], ErrorRenderer]
"""What renders errors of requests with a target, which stands in their first line; empty if it isn't known."""


def last_answer(error: ServiceError, render: ErrorRenderer, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """An error in HTTP/1.1, as the last answer on its connection, for where no middleware gives it an id and logs it.

    Args:
        error: what was wrong.
        render: makes the answer.
        headers: more headers, besides the answer's own.
    """
    request_id = uuid.uuid4().hex
    answer = render(error)
    logger.info(
        "connection ended with %d: %s [%s]",
        answer.status,
        error,
        request_id,
        extra={"request_id": request_id, "status": answer.status, "outcome": error.slug},
    )
    own = ((REQUEST_ID_HEADER.lower().encode(), request_id.encode()), (b"connection", b"close"))
    lines = [name + b": " + value + b"\r\n" for name, value in (*headers, *answer.headers, *own)]
    return b"".join([STATUS_LINE[answer.status], *lines, b"\r\n", answer.body])
