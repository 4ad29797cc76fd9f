"""Which rows of a request need to be computed: not those that the cache has, nor those that are being computed already.

Equal images that are under way at the same time are computed once. The first one leads: its row is made and queued. The
others follow: they take no room in the queue, and get its answer. If the leader's sender leaves, or waits for less
long, one of the followers leads from then on.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from condconv_serve.deadline import ending_at
from condconv_serve.domain import RowAnswer, RowSource, ServedModel, Timings
from condconv_serve.domain.caching import CacheResult, CacheUse
from condconv_serve.errors import DeadlineExceeded, NotCached, ServiceError, unexpected_error
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.cache import KeptRow, RowCache, RowKey, kept


class Flight:
    """A row that is being computed, for which others may wait. It lands once: with an answer, an error, or nothing."""

    def __init__(self, key: RowKey, priority: Priority) -> None:
        """For the rows of `key` that are not more urgent than `priority`."""
        self.key = key
        self.priority = priority
        self._landed: asyncio.Future[KeptRow | ServiceError | None] = asyncio.get_running_loop().create_future()

    def land(self, result: KeptRow | ServiceError | None) -> None:
        """End it; None if its sender has left or waits no longer. What comes later changes nothing."""
        if not self._landed.done():
            self._landed.set_result(result)

    async def landed(self) -> KeptRow | None:
        """Wait for its end.

        Raises:
            ServiceError: why its row could not be computed; an equal one couldn't either.
        """
        result = await asyncio.shield(self._landed)  # one who leaves must not end it for the others
        if isinstance(result, ServiceError):
            raise copy.copy(result)  # each sender's own, since it gets to know where it was raised
        return result


@dataclass(frozen=True, slots=True)
class AskedRow:
    """One row of a request.

    Attributes:
        source: makes it.
        key: what its answer is kept under; None if it isn't kept, nor taken from the cache.
        store: whether its answer may be kept.
        result: what the cache said; None if it wasn't asked.
        hit: the answer from the cache.
        leads: the flight that it leads.
        follows: the flight that it waits for.
    """

    source: RowSource
    key: RowKey | None = None
    store: bool = False
    result: CacheResult | None = None
    hit: KeptRow | None = None
    leads: Flight | None = None
    follows: Flight | None = None

    @property
    def needs_room(self) -> bool:
        """Whether it takes room in the queue at once."""
        return self.hit is None and self.follows is None


class RowSharing:
    """The cache, and the flights under way. On one event loop."""

    def __init__(self, cache: RowCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Look into `cache`, and keep there what is computed."""
        self.cache = cache
        self._clock = clock
        self._flights: dict[RowKey, Flight] = {}

    def may_answer(self, use: CacheUse) -> bool:
        """Whether a request may need no room in the queue, for all that is known before its body."""
        if use.only:
            return True
        if use.max_age <= 0:
            return False
        return self.cache.holds(use.scope) or any(key.scope == use.scope for key in self._flights)

    @contextmanager
    def asked(
        self, model: ServedModel, sources: Sequence[RowSource], use: CacheUse, priority: Priority
    ) -> Iterator[list[AskedRow]]:
        """Look for the rows of a request. Leaving the block ends its flights.

        Nothing is awaited, so until you do, nothing changes for rows that take no room.
        """
        rows = list[AskedRow]()
        try:
            for source in sources:
                look = self._only_kept if use.only else self._asked
                rows.append(look(model, source, use, priority))
            yield rows
        finally:
            for row in rows:
                if row.leads is not None:
                    self._end(row.leads, None)

    def _asked(self, model: ServedModel, source: RowSource, use: CacheUse, priority: Priority) -> AskedRow:
        if source.digest is None:
            return AskedRow(source)
        key = RowKey(model, use.scope, source.digest)
        row = AskedRow(source, key, use.store)
        if use.max_age > 0:
            if hit := self.cache.get(key, max_age=use.max_age):
                return replace(row, result="hit", hit=hit)
            if flight := self._to_follow(key, priority):
                return replace(row, result="shared", follows=flight)
        leads = self._begin(key, priority) if use.store else None
        return replace(row, result="miss" if use.max_age > 0 else "bypass", leads=leads)

    def _only_kept(self, model: ServedModel, source: RowSource, use: CacheUse, priority: Priority) -> AskedRow:
        """A row that has its answer from the cache, or else an error."""
        key = RowKey(model, use.scope, source.digest or b"")  # nothing is kept without a digest
        if hit := self.cache.get(key, max_age=use.max_age):
            return AskedRow(source, key, result="hit", hit=hit)
        refused = Flight(key, priority)
        refused.land(NotCached("No answer for this image is kept, and the request takes no other."))
        return AskedRow(source, key, follows=refused)

    def _to_follow(self, key: RowKey, priority: Priority) -> Flight | None:
        flight = self._flights.get(key)
        return flight if flight is not None and flight.priority <= priority else None

    @contextmanager
    def leading(self, row: AskedRow, priority: Priority) -> Iterator[AskedRow]:
        """A row that nobody leads any more leads from now on, if its answer may be kept. Leaving the block ends it."""
        flight = self._begin(row.key, priority) if row.key is not None and row.store else None
        try:
            yield replace(row, result="miss", leads=flight, follows=None)
        finally:
            if flight is not None:
                self._end(flight, None)

    def _begin(self, key: RowKey, priority: Priority) -> Flight:
        flight = self._flights[key] = Flight(key, priority)
        return flight

    def _end(self, flight: Flight, result: KeptRow | ServiceError | None) -> None:
        flight.land(result)
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def follow(self, flight: Flight, priority: Priority, *, deadline: float) -> KeptRow | None:
        """Wait for an answer as long as somebody leads.

        Returns:
            The answer; None if nobody leads any more.

        Raises:
            DeadlineExceeded: it wasn't there by `deadline`. Other errors are those of the leader's row.
        """
        following: Flight | None = flight
        while following is not None:
            async with ending_at(deadline):
                found = await following.landed()
            if found is not None:
                return found
            following = self._to_follow(flight.key, priority)
        return None

    def keep(self, flight: Flight, answer: RowAnswer) -> None:
        """The leader has an answer."""
        row = kept(answer, at=self._clock())
        self.cache.put(flight.key, row)
        self._end(flight, row)

    def fail(self, flight: Flight, error: Exception) -> None:
        """The leader has an error, which isn't kept. One about its deadline says nothing about the other rows."""
        known = error if isinstance(error, ServiceError) else unexpected_error()
        self._end(flight, None if isinstance(known, DeadlineExceeded) else known)


def answer_of(row: KeptRow, result: CacheResult, *, seconds: float) -> RowAnswer:
    """The answer for a row for which nothing was computed; `seconds` is how long its sender waited."""
    timings = Timings(decode=0.0, queue=0.0, inference=0.0, total=seconds, cache=result)
    return RowAnswer(tensors=row.tensors, timings=timings, batch_size=row.batch_size, placement=row.placement)
