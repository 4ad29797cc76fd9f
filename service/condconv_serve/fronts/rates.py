"""How often each API key may be used."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pyrate_limiter import Duration, InMemoryBucket, Rate, RateItem

from condconv_serve.errors import RateLimited
from condconv_serve.fronts.keys import ApiKey


class Rates(Protocol):
    """How often each key was used, in all processes that share one set of rates."""

    async def use(self, key: ApiKey) -> None:
        """Count one request of a key.

        Raises:
            RateLimited: it has used up its requests of the last 60 seconds.
        """
        ...


class RateLimits:
    """How often each key was used in the last 60 seconds, in this process: implements `Rates`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing used; `clock` is in seconds."""
        self._clock = clock
        self._buckets: dict[tuple[str, int], InMemoryBucket] = {}

    async def use(self, key: ApiKey) -> None:
        """See `Rates.use`."""
        limit = key.requests_per_minute
        if limit is None:
            return
        if (key.name, limit) not in self._buckets:
            self._buckets[key.name, limit] = InMemoryBucket([Rate(limit, Duration.MINUTE)])
        bucket = self._buckets[key.name, limit]
        request = RateItem(key.name, int(self._clock() * 1e3))
        bucket.leak(request.timestamp)
        if not bucket.put(request):
            raise RateLimited(
                f"This API key may send {limit} requests per minute.",
                retry_after=(bucket.peek(limit - 1).timestamp - request.timestamp) / 1e3 + 60.0,  # type: ignore[union-attr]
            )
