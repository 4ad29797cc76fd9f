"""Deadlines: points on the monotonic clock, in seconds, after which nobody waits for an answer any more."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from condconv_serve.errors import DeadlineExceeded


@asynccontextmanager
async def ending_at(deadline: float) -> AsyncGenerator[None, None]:
    """Give up what is awaited within at `deadline`; infinity is never.

    Raises:
        DeadlineExceeded: it was given up.
    """
    loop = asyncio.get_running_loop()
    remaining = deadline - time.monotonic()
    try:
        async with asyncio.timeout_at(None if remaining == math.inf else loop.time() + remaining):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded("The answer was not there by the deadline.") from error
