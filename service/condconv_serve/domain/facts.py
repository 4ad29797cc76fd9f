"""The facts of one request. The middleware, the log, the trace and all fronts share them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from condconv_serve.domain.caching import FROM_CACHE, CacheResult, CacheUse
from condconv_serve.domain.tensors import Timings
from condconv_serve.domain.trace import Stages, TraceContext
from condconv_serve.errors import DeadlineExceeded, NotCached, WaitTooLong

KeyScope = Literal["predict", "admin"]
"""What an API key may allow."""

DEADLINE_SLUGS = frozenset({DeadlineExceeded.slug, WaitTooLong.slug})
"""Slugs of the errors that depend on how long the caller waits."""

STAGES = ("decode", "queue", "inference")
"""The stages of an image that log and trace show, in order."""


DeadlineBy = Literal["caller", "service"]
"""Whose deadline it is: the caller's own `timeout_ms`, or the longest that the service lets anybody wait."""


class Deadline(float):
    """When somebody stops waiting, on the monotonic clock in seconds, and whose decision that is."""

    by: DeadlineBy

    def __new__(cls, at: float, *, by: DeadlineBy) -> Self:
        """A deadline at `at`, set by `by`."""
        deadline = super().__new__(cls, at)
        deadline.by = by
        return deadline

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, DeadlineBy]]:
        """So that it can be pickled; the monotonic clock is one for all processes of a machine."""
        return (float(self),), {"by": self.by}


def deadline_by(deadline: float) -> DeadlineBy:
    """Whose deadline it is; the service's if nobody said."""
    return deadline.by if isinstance(deadline, Deadline) else "service"


def deadlines_of(slug: str | None) -> tuple[DeadlineBy | Literal[""], ...]:
    """Whose deadline it may be that a request missed which ended with an error; empty for nobody's."""
    if slug == NotCached.slug:  # its sender would wait for nothing that must be computed
        return ("caller",)
    return get_args(DeadlineBy) if slug in DEADLINE_SLUGS else ("",)


@dataclass(slots=True, kw_only=True)
class RequestFacts:
    """One request, of any protocol. It is filled in while the request is answered, so it isn't frozen.

    Attributes:
        request_id: the caller's own, or one that was made.
        trace: where the request stands in a trace.
        key_name: name of its API key.
        grants: what it may do. Empty until the gatekeeper has admitted the request.
        model: `name/version` of the model that answers.
        rows: how many images it holds.
        deadline: when its sender gives up, on the monotonic clock.
        cache_max_age: the oldest answer that its sender takes from the cache, in seconds; 0 means none.
        cache_store: whether its sender allows that its answers are kept.
        cache_only: whether its sender takes answers from the cache alone.
        cached: how many of its images were answered from where; empty if no cache was asked.
        seconds: how long each stage took, the longest time of any image.
        stages: where the time of the slowest image went. Other processes export those that it went through there.
        slug: of its error, if it was refused.
        outcome: how it ended, in one word; None while it is being answered.
    """

    request_id: str
    trace: TraceContext
    key_name: str | None = None
    grants: frozenset[KeyScope] = frozenset()
    model: str | None = None
    rows: int | None = None
    deadline: float = math.inf
    cache_max_age: float = math.inf
    cache_store: bool = True
    cache_only: bool = False
    cached: Mapping[CacheResult, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    stages: Stages | None = None
    slug: str | None = None
    outcome: str | None = None

    @property
    def missed(self) -> DeadlineBy | Literal[""]:
        """Whose deadline the request missed, or would have; empty if it ended otherwise."""
        match deadlines_of(self.slug):
            case (only,):
                return only
            case _:
                return deadline_by(self.deadline)

    @property
    def cache(self) -> CacheUse:
        """How it may use the response cache. Each API key has answers of its own: see docs/security.md."""
        whose = f"{self.key_name or ''} {' '.join(sorted(self.grants))}"
        return CacheUse(scope=whose, max_age=self.cache_max_age, store=self.cache_store, only=self.cache_only)

    def note_answer(self, timings: Sequence[Timings], *, stages: Sequence[str] = STAGES) -> None:
        """Note how long the images took, unless their stages are noted; call it when all images are done.

        Args:
            timings: of the images; failed ones have none.
            stages: those that the images went through here.
        """
        if not timings:
            return
        self.seconds = {stage: max(getattr(timing, stage) for timing in timings) for stage in stages}
        self.cached = Counter(timing.cache for timing in timings if timing.cache is not None)
        if self.stages is None:
            slowest = max(timings, key=lambda timing: timing.total)
            self.stages = Stages({stage: getattr(slowest, stage) for stage in stages}, time.monotonic())

    def told(self) -> dict[str, Any]:
        """What is known so far, for log and trace; stages in milliseconds."""
        known = {
            "key": self.key_name,
            "model": self.model,
            "rows": self.rows,
            "cached": sum(self.cached.get(result, 0) for result in FROM_CACHE) if self.cached else None,
            "deadline": self.missed or None,
            **{f"{stage}_ms": round(seconds * 1e3, 1) for stage, seconds in self.seconds.items()},
            "outcome": self.outcome,
        }
        return {name: value for name, value in known.items() if value is not None}
