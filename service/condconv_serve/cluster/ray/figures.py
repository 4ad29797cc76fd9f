"""The figures of all model replicas together, kept where no replica's end reaches them.

These are routing statistics, tallies, and how versions compare that got copies of requests. A replica hands over what
an answer adds before it gives the answer. So the figures are exact whenever a caller looks, and they are those of all
replicas, also of those that have died. What refusals and copies add comes within seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ROUTING, ModelInfo, RowAnswer
from condconv_serve.errors import ServiceError
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.tally import Counts
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.telemetry.tally import VersionTally

MAX_TOKENS = 100_000
"""A request that was computed twice, since its first answer was lost, counts once among so many."""
MAX_UNSENT = 10_000
"""Requests whose figures a replica keeps while they can't be handed over."""
HAND_OVER_SECONDS = 2.0
MAX_REPLICAS = 1000
"""Replicas whose totals are kept apart. One that has been silent while so many others were heard has died."""
Total = TypeVar("Total")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """What one request adds to the routing statistics.

    Attributes:
        token: of the request; the same if it was computed twice.
        model: its name.
        version: of the model.
        weights: float32 `[rows, blocks, experts]`, of its answered rows.
        classes: each row's classes, see `condconv_serve.routing.found.classes_in`.
    """

    token: str
    model: str
    version: str
    weights: NDArray[np.float32]
    classes: tuple[Counts, ...]

    @classmethod
    def of(cls, found: Iterable[RowAnswer | ServiceError], *, token: str, model: ModelInfo) -> Observed | None:
        """What a request's rows add; None if that is nothing."""
        rows = [row for row in found if isinstance(row, RowAnswer)] if model.routing else []
        if not rows:
            return None
        return cls(
            token=token,
            model=model.name,
            version=model.version,
            weights=np.stack([row.tensors[ROUTING] for row in rows]),
            classes=tuple(classes_in(row.tensors) for row in rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What a replica hands over.

    Attributes:
        replica: its name.
        observed: what requests add.
        tallies: all that the replica has done so far, by name and version.
        shadows: all that it has compared so far.
    """

    replica: str
    observed: Sequence[Observed]
    tallies: Mapping[tuple[str, str], VersionTally] = field(default_factory=dict)
    shadows: Sequence[ShadowCounts] = ()


class Figures:
    """Adds them up. It is used on one event loop."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.live = LiveRouting()
        self._models: dict[tuple[str, str], ModelInfo] = {}
        self._tokens: OrderedDict[str, None] = OrderedDict()
        self._tallies: dict[tuple[str, str], _Totals[VersionTally]] = {}
        self._shadows: dict[tuple[str, str, str], _Totals[ShadowCounts]] = {}

    def know(self, models: Iterable[ModelInfo]) -> None:
        """These versions are served now."""
        for model in models:
            known = self._models.get((model.name, model.version))
            if known is None or known.routing != model.routing or known.manifest != model.manifest:
                self._models[model.name, model.version] = model
                self._forget_shadows(model.name, model.version)  # those of another one with the same number

    def keep_only(self, served: Iterable[tuple[str, str]]) -> None:
        """Forget all other versions: nobody serves them any more."""
        for version in set(self._models) - set(served):
            del self._models[version]
            self._tallies.pop(version, None)
            self._forget_shadows(*version)
            self.live.forget(*version)

    def add(self, given: HandOver) -> None:
        """Add what a replica hands over; what was added already is left out."""
        for observed in given.observed:
            model = self._models.get((observed.model, observed.version))
            if model is None or observed.token in self._tokens:
                continue
            self._tokens[observed.token] = None
            if len(self._tokens) > MAX_TOKENS:
                self._tokens.popitem(last=False)
            statistics = self.live.of(model).statistics
            if observed.weights.shape[1:] == model.routing.shape:
                for weights, classes in zip(observed.weights, observed.classes, strict=True):
                    statistics.observe(weights, classes)
        for version, tally in given.tallies.items():
            if version in self._models:
                self._tallies.setdefault(version, _Totals(VersionTally.merged)).put(given.replica, tally)
        for counts in given.shadows:
            if (counts.model, counts.version) in self._models:
                pair = counts.model, counts.version, counts.shadow
                self._shadows.setdefault(pair, _Totals(_all_compared)).put(given.replica, counts)

    def tally(self, name: str, version: str) -> VersionTally:
        """What all replicas have done of a version."""
        totals = self._tallies.get((name, version))
        return VersionTally() if totals is None else totals.sum()

    def shadows(self, name: str) -> list[ShadowCounts]:
        """How a model's versions compare, on all replicas, in order."""
        found = [totals.sum() for pair, totals in self._shadows.items() if pair[0] == name]
        return sorted(found, key=lambda counts: (int(counts.version), int(counts.shadow)))

    def _forget_shadows(self, name: str, version: str) -> None:
        for pair in [pair for pair in self._shadows if pair[0] == name and version in pair[1:]]:
            del self._shadows[pair]


class _Totals(Generic[Total]):
    """What each replica has done so far, in all. Many replicas may come and go."""

    def __init__(self, merge: Callable[[Iterable[Total]], Total]) -> None:
        """Start with nothing; `merge` adds up at least one."""
        self._merge = merge
        self._known: OrderedDict[str, Total] = OrderedDict()
        self._gone: list[Total] = []

    def put(self, replica: str, total: Total) -> None:
        """Replace what a replica said before."""
        self._known[replica] = total
        self._known.move_to_end(replica)
        if len(self._known) > MAX_REPLICAS:
            self._gone = [self._merge([*self._gone, self._known.popitem(last=False)[1]])]

    def sum(self) -> Total:
        """That of all replicas."""
        return self._merge([*self._gone, *self._known.values()])


def _all_compared(counts: Iterable[ShadowCounts]) -> ShadowCounts:
    return reduce(ShadowCounts.merged, counts)


class Reporter:
    """Hands over a replica's figures, those of many requests at once while one hand-over is under way."""

    def __init__(self, hand_over: Callable[[Sequence[Observed]], Awaitable[None]]) -> None:
        """Take what hands over."""
        self._hand_over = hand_over
        self._unsent: list[Observed] = []
        self._next: asyncio.Future[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._reached = True

    def keep(self, observed: Observed | None) -> None:
        """Hand it over with the next report."""
        if observed is not None:
            self._unsent.append(observed)

    async def report(self, observed: Observed | None) -> None:
        """Return when it was handed over, or can't be now. Then it goes with the next one.

        While hand-overs fail, nobody waits for them.
        """
        self.keep(observed)
        handed = self._handing_over()
        if self._reached:
            await asyncio.shield(handed)

    async def flush(self) -> None:
        """Hand over what there is; return when that is done, or has failed."""
        await asyncio.shield(self._handing_over())

    def _handing_over(self) -> asyncio.Future[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return self._next

    async def _send(self) -> None:
        try:
            while (done := self._next) is not None:
                self._next, batch, self._unsent = None, self._unsent, []
                try:
                    async with asyncio.timeout(HAND_OVER_SECONDS):
                        await self._hand_over(batch)
                    self._reached = True
                except Exception as error:  # answers don't wait for figures that can't be kept
                    logger.warning("figures of %d requests are handed over later: %s", len(batch), error)
                    self._reached = False
                    self._unsent = [*batch, *self._unsent][-MAX_UNSENT:]
                finally:
                    done.set_result(None)
        finally:
            self._sending = None
