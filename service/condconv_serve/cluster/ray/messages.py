"""What ingress and model replicas say to each other. Hosts' clocks differ, so times are lengths, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from condconv_serve.domain import MadeRow, RowAnswer
from condconv_serve.domain.caching import CacheUse
from condconv_serve.domain.facts import DeadlineBy
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import ServiceError
from condconv_serve.inference.batching import Priority
from condconv_serve.telemetry.logs import current_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The request that something is asked for, as log and trace name it.

    Attributes:
        request_id: its id.
        trace: where it stands in a trace.
    """

    request_id: str
    trace: TraceContext

    @classmethod
    def current(cls) -> Caller | None:
        """The request that this task works for; None outside of requests."""
        facts = current_request()
        return None if facts is None else cls(request_id=facts.request_id, trace=facts.trace)


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
        caller: whose rows they are; None outside of requests.
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
    caller: Caller | None = None


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
