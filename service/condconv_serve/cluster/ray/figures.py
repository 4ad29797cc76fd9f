"""The figures of all model replicas together: routing statistics and tallies, kept where no replica's end reaches them.

A replica hands over what an answer adds before it gives the answer. So the figures are exact whenever a caller looks,
and they are those of all replicas, also of those that have died.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import ROUTING, ModelInfo, RowAnswer
from condconv_serve.errors import ServiceError
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.tally import Counts
from condconv_serve.telemetry.tally import VersionTally

MAX_TOKENS = 100_000
"""A request that was computed twice, since its first answer was lost, counts once among so many."""
MAX_UNSENT = 10_000
"""Requests whose figures a replica keeps while they can't be handed over."""
HAND_OVER_SECONDS = 2.0
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
    """

    replica: str
    observed: Sequence[Observed]
    tallies: Mapping[tuple[str, str], VersionTally] = field(default_factory=dict)


class Figures:
    """Adds them up. It is used on one event loop."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.live = LiveRouting()
        self._models: dict[tuple[str, str], ModelInfo] = {}
        self._tokens: OrderedDict[str, None] = OrderedDict()
        self._tallies: dict[tuple[str, str], dict[str, VersionTally]] = {}

    def know(self, models: Iterable[ModelInfo]) -> None:
        """These versions are served now."""
        for model in models:
            known = self._models.get((model.name, model.version))
            if known is None or known.routing != model.routing or known.manifest != model.manifest:
                self._models[model.name, model.version] = model

    def keep_only(self, served: Iterable[tuple[str, str]]) -> None:
        """Forget all other versions: nobody serves them any more."""
        for version in set(self._models) - set(served):
            del self._models[version]
            self._tallies.pop(version, None)
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
                self._tallies.setdefault(version, {})[given.replica] = tally

    def tally(self, name: str, version: str) -> VersionTally:
        """What all replicas have done of a version."""
        return VersionTally.merged(self._tallies.get((name, version), {}).values())


class Reporter:
    """Hands over a replica's figures, those of many requests at once while one hand-over is under way."""

    def __init__(self, hand_over: Callable[[Sequence[Observed]], Awaitable[None]]) -> None:
        """Take what hands over."""
        self._hand_over = hand_over
        self._unsent: list[Observed] = []
        self._next: asyncio.Future[None] | None = None
        self._sending: asyncio.Task[None] | None = None

    async def report(self, observed: Observed | None) -> None:
        """Return when it was handed over, or can't be now. Then it goes with the next one."""
        if observed is not None:
            self._unsent.append(observed)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        await asyncio.shield(self._next)

    async def _send(self) -> None:
        try:
            while (done := self._next) is not None:
                self._next, batch, self._unsent = None, self._unsent, []
                try:
                    async with asyncio.timeout(HAND_OVER_SECONDS):
                        await self._hand_over(batch)
                except Exception as error:  # answers don't wait for figures that can't be kept
                    logger.warning("figures of %d requests are handed over later: %s", len(batch), error)
                    self._unsent = [*batch, *self._unsent][-MAX_UNSENT:]
                finally:
                    done.set_result(None)
        finally:
            self._sending = None
