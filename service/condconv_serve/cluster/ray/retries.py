"""When a request that a model replica didn't answer is sent again, and when its sender hears of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from condconv_serve.errors import (
    Draining,
    EngineStalled,
    ModelNotFound,
    ModelUnavailable,
    NotReady,
    QueueFull,
    ServiceError,
    VersionNotFound,
    WaitTooLong,
)

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds before a request is sent again; each time twice as long."""
LONGEST_LOSS = 60.0
"""Seconds after which a request without a deadline isn't sent again, though only its replicas died."""
LONGEST_CHANGE = 10.0
"""Seconds for which a replica may lack a version that others serve: it is just loading it, or has just dropped it."""
NEWS_SECONDS = 2.0
"""Seconds for which a replica that ends or is broken may still be given requests: until all have heard of it."""
_CHANGING = (ModelNotFound, ModelUnavailable, VersionNotFound)
_OWN_TROUBLE = (Draining, EngineStalled, NotReady)
_FULL = (QueueFull, WaitTooLong)


class Retries:
    """The tries of one request."""

    def __init__(self, deadline: float, *, replicas: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            deadline: when its sender stops waiting, in seconds of `clock`.
            replicas: how many there are.
            clock: monotonic.
        """
        self._clock = clock
        self._started = clock()
        self._deadline = deadline
        self._replicas = max(replicas, 1)
        self._pause = FIRST_PAUSE
        self._refusals = 0

    def after_loss(self) -> float:
        """Seconds until the next try, since the replica died.

        Raises:
            NotReady: the request has no deadline, and replicas have died for too long.
        """
        if self._deadline == math.inf and self._clock() - self._started > LONGEST_LOSS:
            raise NotReady("No replica that computes this model can be reached.", retry_after=5.0)
        return self._next_pause()

    def after_refusal(self, refusal: ServiceError) -> float:
        """Seconds until the next try, since a replica refused the request.

        Raises:
            ModelUnavailable: the version was served when the request came, but no replica has it any more.
            ServiceError: the refusal, if the sender should hear of it.
        """
        self._refusals += 1
        waited = self._clock() - self._started
        if isinstance(refusal, _CHANGING):
            again = waited < LONGEST_CHANGE
        elif isinstance(refusal, _OWN_TROUBLE):
            again = waited < NEWS_SECONDS or self._refusals <= 2 * self._replicas
        else:
            again = isinstance(refusal, _FULL) and self._refusals < self._replicas and self._refusals < 2
        pause = self._next_pause()
        if again and self._clock() + pause < self._deadline:
            return pause
        if isinstance(refusal, _CHANGING):  # it was served when the request came
            raise ModelUnavailable(f"What is served is just changing: {refusal}", retry_after=1.0) from refusal
        raise refusal

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause
