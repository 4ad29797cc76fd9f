"""How a request is answered in the end: what is sent again, after which pause, and until when.

A generator says what to do next (`Send` or `Pause`); the clients do it, and send back what came of it. So one decision
serves threads and asyncio alike.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from condconv_serve.client import calls
from condconv_serve.client.answers import Reply
from condconv_serve.client.calls import Call
from condconv_serve.client.options import check_seconds
from condconv_serve.errors import (
    AblationBusy,
    CapacityError,
    DeadlineExceeded,
    Draining,
    InvalidParameter,
    ModelUnavailable,
    NotReady,
    QueueFull,
    RateLimited,
    RemoteFailed,
    ServiceError,
    TooManyConnections,
    WaitTooLong,
)

Answer = TypeVar("Answer")

RETRYABLE = (
    AblationBusy,
    Draining,
    ModelUnavailable,
    NotReady,
    QueueFull,
    RateLimited,
    TooManyConnections,
    WaitTooLong,
)
"""Errors that may be over at the next try, and cost the server nothing."""
RETRYABLE_STATUS = frozenset({429, 502, 503, 504})
"""Status codes of proxies whose server can't be reached right now or gives no answer, or of those that limit rates."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request, and wait for its whole answer, at most so many seconds."""

    call: Call[Any]
    seconds: float
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Work = Generator[Send | Pause, Reply | None, Answer]


@dataclass(kw_only=True)
class RequestPolicy:
    """How a client asks its server, and what it has learned of it. All its threads share this.

    Attributes:
        server: its address, for messages.
        seconds: how long a request may take if it doesn't say, repetitions included.
        retries: how often a request is sent again at most.
        first_pause: seconds before a request is sent again, if the server doesn't say; doubled each time.
        longest_pause: what these pauses grow to.
        images: most images in a request.
        image_bytes: most bytes of images in a request of several.
        server_seconds: a request that may take longer than this doesn't say so, since the server won't wait so long.
        clock: monotonic, in seconds.
        random: from 0 to 1; spreads the tries of many clients.
    """

    server: str
    seconds: float = 60.0
    retries: int = 3
    first_pause: float = 0.2
    longest_pause: float = 10.0
    images: int = 16
    image_bytes: int = 16 * 2**20
    server_seconds: float = 30.0
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = field(default=random.random, repr=False)

    def pause(self, error: ServiceError, tries: int) -> float:
        """Seconds before the next try: not all clients at once, and never before the server says."""
        asked = getattr(error, "retry_after", None)
        if asked:  # some proxies always say 0
            return float(asked) * (1 + 0.1 * self.random())
        return min(self.first_pause * 2.0 ** min(tries - 1, 30), self.longest_pause) * (0.5 + 0.5 * self.random())


def exchange(call: Call[Answer], policy: RequestPolicy) -> Work[Answer]:
    """Ask until there is an answer, or no try is left.

    Raises:
        ServiceError: what the server says. DeadlineExceeded: there was no answer in time. RemoteFailed: the server
            can't be reached, or its answer isn't one.
    """
    seconds = policy.seconds if call.seconds is None else call.seconds
    end = policy.clock() + seconds
    tries, timed = 0, call.timed
    while True:
        left = end - policy.clock()
        told = round(left * 1e3) if timed and 0.001 <= left < policy.server_seconds else None
        try:
            reply = yield Send(call, max(left, 0.001), told)
            assert reply is not None
            return call.read(reply)
        except httpx.TimeoutException as error:
            failed: ServiceError = (
                DeadlineExceeded(f"The server at {policy.server} gave no answer within {seconds:g} seconds.")
                if end - policy.clock() < 0.01 * seconds
                else _unreachable(error, policy)
            )
            cause: Exception | None = error
        except httpx.RequestError as error:
            failed, cause = _unreachable(error, policy), error
            if _distrusted(error):
                raise failed from error
        except InvalidParameter as error:
            if told is None or "timeout_ms" not in str(error):
                raise
            # The server waits less long than that; how long is its own affair now.
            policy.server_seconds, timed = min(policy.server_seconds, left), False
            continue
        except ServiceError as error:
            failed, cause = error, error.__cause__ if isinstance(error.__cause__, Exception) else None
        tries += 1
        wait = policy.pause(failed, tries)
        if not _may_repeat(call, failed) or tries > policy.retries or policy.clock() + wait >= end:
            raise failed from cause
        yield Pause(wait)
        if policy.clock() >= end:  # on a busy machine a pause may take longer
            raise failed from cause


def until_ready(policy: RequestPolicy, *, seconds: float) -> Work[None]:
    """Ask until the server takes requests.

    Raises:
        ServiceError: why it still doesn't after `seconds`.
    """
    check_seconds("seconds", seconds)
    end = policy.clock() + seconds
    pause = 0.05
    while True:
        try:
            return (yield from exchange(calls.ready(seconds=end - policy.clock()), policy))
        except (CapacityError, RemoteFailed) as error:
            failed = error
            if policy.clock() + pause >= end:
                raise
        yield Pause(pause)
        if policy.clock() >= end:
            raise failed
        pause = min(2 * pause, 1.0)


def is_ready(policy: RequestPolicy) -> Work[bool]:
    """Whether the server takes requests; not, if it can't be reached."""
    try:
        yield from exchange(calls.ready(), policy)
    except (CapacityError, RemoteFailed):
        return False
    return True


def _may_repeat(call: Call[Any], error: ServiceError) -> bool:
    if not call.repeatable:
        return False
    if isinstance(error, RemoteFailed):
        return error.status is None or error.status in RETRYABLE_STATUS
    return isinstance(error, RETRYABLE)


def _distrusted(error: BaseException | None) -> bool:
    """Whether the server's certificate was refused, as it would be at every try."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreachable(error: httpx.RequestError, policy: RequestPolicy) -> RemoteFailed:
    reason = str(error).rstrip(".") or type(error).__name__
    return RemoteFailed(f"The server at {policy.server} can't be reached: {reason}.")
