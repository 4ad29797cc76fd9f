"""What ingress and model replicas say to each other. Hosts' clocks differ, so times are lengths, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.domain import MadeRow, RowAnswer
from condconv_serve.domain.caching import CacheUse
from condconv_serve.domain.facts import DeadlineBy
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import ServiceError
from condconv_serve.inference.batching import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRequest:
    """The rows of one request.

    Attributes:
        token: the same in each try. Statistics count equal tokens once.
        model: its name.
        version: its version, which was chosen already.
        rows: the rows; an error where a row could not be made, so that it is counted where all rows are.
        priority: how urgent they are.
        timeout: seconds that are left; None if there is no limit.
        deadline_by: whose limit that is.
        digests: those of the rows, see `RowSource`; none if there are no caches.
        cache: how it may use the replica's cache; not at all if None.
        request_id: of the caller's request, for the log.
        trace: where that request stands in a trace.
    """

    token: str
    model: str
    version: str
    rows: tuple[MadeRow | ServiceError, ...]
    priority: Priority
    timeout: float | None
    deadline_by: DeadlineBy
    digests: tuple[bytes | None, ...] = ()
    cache: CacheUse | None = None
    request_id: str | None = None
    trace: TraceContext | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsReply:
    """A replica's answer.

    Attributes:
        replica: who gave it.
        outcomes: one for each row, in order; empty if the request was refused as a whole.
        refusal: why it was refused.
    """

    replica: str
    outcomes: tuple[RowAnswer | ServiceError, ...] = ()
    refusal: ServiceError | None = None


class ReplicaLost(Exception):
    """The replica that had the request died, or can't be reached: no answer will come from it."""
