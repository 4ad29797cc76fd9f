"""What is known of one request: the middleware, the log, the trace and all fronts share it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from condconv_serve.domain.tensors import Timings
from condconv_serve.domain.trace import Stages, TraceContext

KeyScope = Literal["predict", "admin"]
"""What an API key may allow."""

STAGES = ("decode", "queue", "inference")
"""The stages of an image that log and trace tell of, in their order."""


@dataclass(slots=True, kw_only=True)
class RequestFacts:
    """One request, of whichever protocol. It fills up while the request is answered, so it isn't frozen.

    Attributes:
        request_id: the caller's own, or one that was made.
        trace: where the request stands in a trace.
        key_name: of the API key that it came with.
        grants: what that key, or an open service, allows. Nothing, until the gatekeeper says so.
        model: `name/version` of the model that answers.
        rows: how many images it holds.
        deadline: when its sender gives up, on the monotonic clock.
        seconds: how long each stage took, the longest time of any image.
        stages: where the time of the slowest image went.
        slug: of the error that it was refused with.
        outcome: how it ended, in one word; None while it is being answered.
    """

    request_id: str
    trace: TraceContext
    key_name: str | None = None
    grants: frozenset[KeyScope] = frozenset()
    model: str | None = None
    rows: int | None = None
    deadline: float = math.inf
    seconds: Mapping[str, float] = field(default_factory=dict)
    stages: Stages | None = None
    slug: str | None = None
    outcome: str | None = None

    def note_answer(self, timings: Sequence[Timings]) -> None:
        """Keep where the time of the images went; those that failed have no timings. Call it when they are done."""
        if not timings:
            return
        self.seconds = {stage: max(getattr(timing, stage) for timing in timings) for stage in STAGES}
        slowest = max(timings, key=lambda timing: timing.total)
        self.stages = Stages({stage: getattr(slowest, stage) for stage in STAGES}, time.monotonic())

    def told(self) -> dict[str, Any]:
        """What log and trace tell of it, as far as it is known; stages in milliseconds."""
        known = {
            "key": self.key_name,
            "model": self.model,
            "rows": self.rows,
            **{f"{stage}_ms": round(seconds * 1e3, 1) for stage, seconds in self.seconds.items()},
            "outcome": self.outcome,
        }
        return {name: value for name, value in known.items() if value is not None}
