"""What all replicas share: who serves what, figures, recent requests, and the rates of API keys.

One actor keeps it, on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from condconv_serve.cluster.ray.figures import Figures, HandOver
from condconv_serve.cluster.ray.mirror import ClusterState
from condconv_serve.domain import ServedModel
from condconv_serve.errors import RateLimited, RoutingNotFound
from condconv_serve.fronts.keys import ApiKey
from condconv_serve.fronts.rates import RateLimits
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.recent import RecentRequest, RecentRequests
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import Window
from condconv_serve.serving.served import Served
from condconv_serve.serving.unserved import Trouble, Unserved, version_loading
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.store.aliases import Alias
from condconv_serve.store.default import Default
from condconv_serve.telemetry.tally import VersionTally

SILENT_SECONDS = 10.0
"""A replica that says nothing for so long is gone."""
_NOBODY = Default(name=None, reason="No model replica is running.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What one model replica says of itself.

    Attributes:
        replica: its name.
        number: of the report; a later one has a higher number.
        served: what it serves; its engines are `EngineStub`.
        trouble: why it can't compute now; None if it can.
        unready: why models are missing that readiness needs; None if they are there.
        problems: what else is wrong, a sentence each.
    """

    replica: str
    number: int
    served: Served
    trouble: Trouble | None = None
    unready: Trouble | None = None
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class _Known:
    report: ReplicaReport
    changed: int
    heard: float


class SharedState:
    """What is shared. All methods are called on one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Know of no replica; `clock` is monotonic, in seconds."""
        self._clock = clock
        self._rates = RateLimits(clock=clock)
        self._figures = Figures()
        self._recent = RecentRequests()
        self._known: dict[str, _Known] = {}
        self._began, self._told = clock(), False
        # An actor that comes back must not give a number that somebody has seen before.
        self._changes = time.time_ns()
        self._changed = asyncio.Event()

    async def publish(self, report: ReplicaReport) -> None:
        """A replica says what it serves."""
        self._told = True
        self._known[report.replica] = _Known(report, self._changes + 1, self._clock())
        self._figures.know(model.info for versions in report.served.models.values() for model in versions.values())
        self._change()

    async def heard(self, replica: str, number: int) -> bool:
        """A replica says that nothing has changed since its report with this number; False if that isn't known."""
        self._drop_silent()
        known = self._known.get(replica)
        if known is None or known.report.number != number:
            return False
        known.heard = self._clock()
        return True

    async def leave(self, replica: str) -> None:
        """A replica takes no more requests."""
        if self._known.pop(replica, None) is not None:
            self._change()

    async def watch(self, seen: int, *, wait: float) -> tuple[int, ClusterState] | None:
        """What is served, once it isn't what the caller has seen; None if that takes longer than `wait` seconds.

        An actor that has just come back waits for the first replica that says what it serves: those that are there go
        on meanwhile.

        Args:
            seen: the number that came with what the caller saw last; -1 if it saw nothing.
            wait: seconds.
        """
        self._drop_silent()
        if self._changes == seen or self._is_new():
            changed = self._changed
            try:
                async with asyncio.timeout(wait):
                    await changed.wait()
            except TimeoutError:
                return None
        return self._changes, merged([known.report for known in self._newest_first()])

    async def use_key(self, key: ApiKey) -> RateLimited | None:
        """Count one request of an API key; an error if it has used up its requests of the last 60 seconds."""
        try:
            await self._rates.use(key)
        except RateLimited as error:
            return error
        return None

    async def hand_over(self, given: HandOver) -> None:
        """A replica hands over its figures."""
        self._figures.add(given)

    async def routing_state(self, model: str, version: str, windows: Sequence[Window]) -> RoutingState | None:
        """See `condconv_serve.fronts.context.RoutingFigures.state`."""
        return await self._figures.live.state(model, version, windows)

    async def class_means(self, model: str, version: str, classes: Collection[int]) -> ClassMeans:
        """See `condconv_serve.fronts.context.RoutingFigures.class_means`."""
        return await self._figures.live.class_means(model, version, classes)

    async def reset(self, model: str | None, version: str | None) -> Sequence[tuple[str, str]]:
        """See `condconv_serve.fronts.context.RoutingFigures.reset`."""
        return await self._figures.live.reset(model, version)

    async def tallies(self, versions: Sequence[tuple[str, str]]) -> Sequence[VersionTally]:
        """See `condconv_serve.fronts.context.TallySource.read`."""
        return [self._figures.tally(*version) for version in versions]

    async def shadows(self, name: str) -> Sequence[ShadowCounts]:
        """See `condconv_serve.fronts.context.Shadows.read`."""
        return self._figures.shadows(name)

    async def remember(self, request: RecentRequest, owner: str | None) -> None:
        """See `condconv_serve.fronts.context.RecentAnswers.remember`."""
        self._recent.remember(request, owner=owner)

    async def find_recent(self, request_id: str, owner: str | None) -> RecentRequest | RoutingNotFound:
        """See `condconv_serve.fronts.context.RecentAnswers.find`; the error is returned."""
        try:
            return await self._recent.find(request_id, owner=owner)
        except RoutingNotFound as error:
            return error

    def _is_new(self) -> bool:
        """Whether replicas may be there, but none has said anything yet."""
        return not self._told and self._clock() < self._began + SILENT_SECONDS

    def _newest_first(self) -> list[_Known]:
        return sorted(self._known.values(), key=lambda known: known.changed, reverse=True)

    def _drop_silent(self) -> None:
        limit = self._clock() - SILENT_SECONDS
        silent = [replica for replica, known in self._known.items() if known.heard < limit]
        for replica in silent:
            del self._known[replica]
        if silent:
            self._change()

    def _change(self) -> None:
        self._changes += 1
        served = [known.report.served.models for known in self._known.values()]
        if any(served):  # when all have died, their figures stay
            self._figures.keep_only(
                (name, version) for models in served for name, versions in models.items() for version in versions
            )
        self._changed.set()
        self._changed = asyncio.Event()


def merged(reports: Sequence[ReplicaReport]) -> ClusterState:
    """What several replicas serve together, which follow one store, but not at the same moment.

    A version counts as served if all replicas serve it. While no version of a model is served by all, each one counts
    that any of them serves. A model's aliases are the newest that point at nothing else. Replicas that can't compute
    now don't count, unless none can: then it is known what there is, and why it can't be had.

    Args:
        reports: of the replicas, the newest first.
    """
    serving = [report for report in reports if report.served.models]
    well = [report for report in serving if report.trouble is None]
    troubles = [report.trouble for report in reports if report.trouble is not None]
    trouble = None if well else next(iter(troubles), Trouble("No model replica is ready.", 5.0))
    if not serving:
        loading = next((report.served for report in reports if report.trouble is None), Served(default=_NOBODY))
        return ClusterState(served=loading, trouble=trouble, problems=_problems(reports))
    counted = [report.served for report in well or serving]
    newest = counted[0]
    models = {
        name: versions
        for name in dict.fromkeys(name for served in counted for name in served.models)
        if (versions := _versions([served.models.get(name, {}) for served in counted]))
    }
    return ClusterState(
        served=replace(
            newest,
            models=models,
            aliases={
                name: _aliases([served.aliases.get(name, {}) for served in counted], versions)
                for name, versions in models.items()
            },
            unserved={**newest.unserved, **{name: _unserved(name, counted, of) for name, of in models.items()}},
        ),
        replicas=len(well),
        trouble=trouble,
        unready=(well or serving)[0].unready,
        problems=_problems(reports),
    )


def _versions(served: Sequence[Mapping[str, ServedModel]]) -> Mapping[str, ServedModel]:
    any_of_them = {version: model for versions in reversed(served) for version, model in versions.items()}
    common = {
        version: model
        for version, model in any_of_them.items()
        if all(version in versions for versions in served if versions)
    }
    return common or any_of_them


def _aliases(known: Sequence[Mapping[str, Alias]], versions: Mapping[str, ServedModel]) -> Mapping[str, Alias]:
    for aliases in known:
        if all(version in versions for alias in aliases.values() for version in alias.versions):
            return aliases
    return known[0]


def _unserved(name: str, known: Sequence[Served], versions: Mapping[str, ServedModel]) -> Unserved:
    """What the newest replica says, and the versions that not all replicas have loaded yet."""
    newest = known[0]
    loading = {version: version_loading(name, version) for version in newest.models.get(name, {})}
    for served in reversed(known):
        loading |= served.unserved.get(name, Unserved()).versions
    found = {version: trouble for version, trouble in loading.items() if version not in versions}
    return replace(newest.unserved.get(name, Unserved()), versions=found)


def _problems(reports: Sequence[ReplicaReport]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problem for report in reports for problem in report.problems))
