"""A request's place in a trace (W3C Trace Context), and how long its stages took."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

SAMPLED = 0x01
"""The flag of `traceparent` that says: this trace is recorded."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A request's place in a trace (W3C Trace Context). Ids are lower-case hexadecimal, of 32 and 16 digits."""

    trace_id: str
    span_id: str
    sampled: bool = False

    @classmethod
    def parse(cls, traceparent: str | None) -> TraceContext | None:
        """Read the header `traceparent`. None if it is absent or invalid: the standard says to ignore it then."""
        match = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        # Later versions may append fields; this one has exactly four.
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id=trace_id, span_id=span_id, sampled=bool(int(flags, 16) & SAMPLED))

    @classmethod
    def following(cls, parent: TraceContext | None) -> TraceContext:
        """A new span in the parent's trace, or in a trace of its own."""
        return cls(
            trace_id=parent.trace_id if parent else secrets.token_hex(16),
            span_id=secrets.token_hex(8),
            sampled=parent.sampled if parent else False,
        )

    def __str__(self) -> str:
        """The context as a header has it."""
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


@dataclass(frozen=True, slots=True)
class Stages:
    """How long each stage of one image took (seconds, in order). The last one ended at `ended` (monotonic clock)."""

    seconds: Mapping[str, float]
    ended: float
