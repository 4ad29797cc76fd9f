"""Deadlines: points on the monotonic clock (seconds). After them nobody waits for the answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from condconv_serve.errors import DeadlineExceeded


@asynccontextmanager
async def ending_at(deadline: float) -> AsyncGenerator[None, None]:
    """Stop waiting inside the block at `deadline`; infinity means never.

    Raises:
        DeadlineExceeded: the deadline passed.
    """
    try:
        async with asyncio.timeout(None if deadline == math.inf else deadline - time.monotonic()) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():  # something inside the block raised it
            raise
        raise DeadlineExceeded("The answer was not ready by the deadline.") from error
