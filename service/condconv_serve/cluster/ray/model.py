"""A model replica: the service without fronts. It follows the store, and computes the rows that it is given."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeVar

from condconv_serve.bootstrap import Service
from condconv_serve.cluster.engine_stub import EngineStub
from condconv_serve.cluster.ray.control import Asked
from condconv_serve.cluster.ray.figures import HandOver, Observed, Reporter
from condconv_serve.cluster.ray.held import HeldModels
from condconv_serve.cluster.ray.messages import Caller, RowsReply, RowsRequest
from condconv_serve.cluster.ray.shared import ReplicaReport
from condconv_serve.domain import Ablated, ModelInfo, RoutingOverrides, Row, RowAnswer, ServedModel
from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.errors import NotReady, ServiceError, VersionNotFound, let_go
from condconv_serve.inference.plane import made_source
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.serving.unserved import Trouble
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.settings import Settings
from condconv_serve.store.aliases import NO_MIRROR, Alias
from condconv_serve.telemetry.logs import request_logged_as

LOOK_SECONDS = 0.2
"""How often a replica looks whether it serves something else than it said."""
HEARTBEAT_SECONDS = 2.0
RETRY_SECONDS = 1.0
WAIT_FOR_VERSION = 1.0
"""Seconds that a request waits for a version that another replica serves already."""
_STAGES = ("queue", "inference")
"""What rows go through here. They are decoded by the ingress replica."""
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Told(Protocol):
    """Where a replica tells what it serves; see `condconv_serve.cluster.ray.shared.SharedState`."""

    async def publish(self, report: ReplicaReport) -> None:
        """Say what it serves."""
        ...

    async def heard(self, replica: str, number: int) -> bool:
        """Say that nothing has changed."""
        ...

    async def leave(self, replica: str) -> None:
        """Say that it takes no more requests."""
        ...

    async def hand_over(self, given: HandOver) -> None:
        """Hand over its figures."""
        ...


class ModelReplica:
    """One replica. It knows nothing of Ray."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        told: Told,
        advertise: Callable[[Collection[str]], Awaitable[None]],
        load: ModelLoader | None = None,
    ) -> None:
        """Find the bundles. Nothing is loaded yet.

        Args:
            settings: what to serve and how.
            name: of the replica.
            told: where it tells what it serves.
            advertise: called with `model/version` of all that it can answer when that changes, so that it is asked.
            load: makes an engine of a bundle; `load_model` if None.

        Raises:
            BundleError, ConfigurationError: as `Service`.
        """
        self.service = Service(settings, load=load, on_copy=self._observe_copy)
        self._name = name
        self._told = told
        self._advertise = advertise
        self._stack = AsyncExitStack()
        self._number = 0
        self._reported: ReplicaReport | None = None
        self._held = HeldModels(self.service.registry)
        self._reporter = Reporter(self._hand_over)
        self._observes = settings.routing_statistics
        self._tasks: list[asyncio.Task[None]] = []
        self._interval = settings.store_poll_interval

    async def start(self) -> None:
        """Load the models; then tell what is served, and follow the store.

        Raises:
            BundleError: no model can be served.
        """
        service = self.service
        await self._stack.enter_async_context(service.running())
        try:
            await service.load_now()
            await self._try_to_report()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [
            asyncio.create_task(service.follower.watch(interval=self._interval)),
            asyncio.create_task(self._keep_reporting()),
        ]

    async def stop(self) -> None:
        """Take nothing more, finish what was taken, and release everything."""
        self.service.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reporter.flush()
        try:
            await self._told.leave(self._name)
        except Exception:  # it will be missed soon enough
            logger.exception("the other replicas couldn't be told that this one ends")
        self._held.release()
        await self._stack.aclose()
        self.service.follower.close()

    async def infer(self, request: RowsRequest) -> RowsReply:
        """Compute the rows of one request. Cancelling takes them out of the queue."""
        timeout = math.inf if request.timeout is None else request.timeout
        deadline = Deadline(time.monotonic() + timeout, by=request.deadline_by)
        with self._traced(request, deadline) as facts:
            try:
                found = await self._compute(request, deadline, facts)
            except ServiceError as error:
                facts.slug = facts.outcome = error.slug
                return RowsReply(replica=self._name, refusal=let_go(error))
            facts.outcome = next((row.slug for row in found if isinstance(row, ServiceError)), "answered")
        return RowsReply(replica=self._name, outcomes=tuple(found))

    async def ask(self, caller: Caller | None, method: Asked, *arguments: Any) -> Any:
        """Call one of the following methods for a request, whose ids are in the log meanwhile."""
        with ExitStack() as logged:
            if caller is not None:
                facts = RequestFacts(request_id=caller.request_id, trace=caller.trace)
                logged.enter_context(request_logged_as(facts))
            return await getattr(self, method)(*arguments)

    async def change_alias(
        self,
        name: str,
        alias: str,
        what: Literal["set", "roll_back", "delete"],
        versions: Mapping[str, int] = {},
        mirror: Mapping[str, int] = NO_MIRROR,
    ) -> Alias | ServiceError | None:
        """Change an alias in the store; what `condconv_serve.fronts.context.VersionAdmin` raises is returned."""
        admin = self.service.versions
        if what == "delete":
            return await _or_error(admin.delete_alias(name, alias))
        if what == "roll_back":
            return await _or_error(admin.roll_back(name, alias))
        return await _or_error(admin.set_alias(name, alias, versions, mirror=mirror))

    async def load(self, name: str, version: str) -> VersionStatus | ServiceError:
        """Load a version and keep it; errors are returned."""
        return await self._told_after(self.service.versions.load(name, version))

    async def unload(self, name: str, version: str) -> VersionStatus | ServiceError:
        """Serve a version no more; errors are returned."""
        return await self._told_after(self.service.versions.unload(name, version))

    async def look_again(self) -> None:
        """Look at the store now."""
        await self._told_after(self.service.follower.sync())

    async def status(self) -> Mapping[str, list[VersionStatus]]:
        """The state of every version of every model."""
        return await asyncio.to_thread(self.service.versions.status)

    async def ablate(
        self, model: str, version: str, row: Row, overrides: RoutingOverrides, seconds: float | None
    ) -> Ablated | ServiceError:
        """Compute a row with other routings, within so many seconds; errors are returned."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds

        async def computed() -> Ablated:
            served, ablator = await self._find(model, version), self.service.ablator
            async with ablator.admit():
                return await ablator.ablate(served, row, overrides, deadline=deadline)

        return await _or_error(computed())

    def rows(self) -> int:
        """Rows that wait here or are being computed."""
        return self.service.rows()

    def check_health(self) -> None:
        """Refuse to be called healthy while the engine is broken, such as by batches that hang.

        Raises:
            NotReady: why it is, until a batch works: that it may be tried again doesn't make it healthy.
        """
        if problem := self.service.engine_broken():
            raise NotReady(problem)

    @contextmanager
    def _traced(self, request: RowsRequest, deadline: Deadline) -> Iterator[RequestFacts]:
        """A span in the request's trace, and its ids in the log, while it is here."""
        caller = request.caller
        span = self.service.tracer.start(None if caller is None else caller.trace)
        facts = RequestFacts(
            request_id=request.token if caller is None else caller.request_id,
            trace=span.context,
            model=f"{request.model}/{request.version}",
            rows=len(request.rows),
            deadline=deadline,
        )
        failed = True
        try:
            with request_logged_as(facts):
                yield facts
            failed = facts.slug is not None
        except asyncio.CancelledError:
            facts.outcome, failed = "cancelled", False
            raise
        finally:
            told = {"request_id": facts.request_id, "replica": self._name, **facts.told()}
            attributes = {f"condconv.{name}": value for name, value in told.items()}
            span.end(name="replica", failed=failed, attributes=attributes, stages=facts.stages)

    async def _compute(
        self, request: RowsRequest, deadline: Deadline, facts: RequestFacts
    ) -> list[RowAnswer | ServiceError]:
        if refusal := self.service.readiness.refusal():  # another replica may be well
            raise refusal
        plane, digests = self.service.images.plane, request.digests or [None] * len(request.rows)
        sources = [replace(made_source(row), digest=digest) for row, digest in zip(request.rows, digests, strict=True)]
        served = await self._find(request.model, request.version)
        with self.service.registry.hold(served):
            found = await plane.infer_each(
                served, sources, priority=request.priority, deadline=deadline, cache=request.cache
            )
        facts.note_answer([row.timings for row in found if isinstance(row, RowAnswer)], stages=_STAGES)
        observed = Observed.of(found, token=request.token, model=served.info) if self._observes else None
        await self._reporter.report(observed)  # before the answer, so that an answer that was given is counted
        return [let_go(row) if isinstance(row, ServiceError) else row for row in found]

    async def _find(self, model: str, version: str) -> ServedModel:
        """A version that serves here, or did a moment ago. Another replica may have loaded it a moment earlier."""
        until = time.monotonic() + WAIT_FOR_VERSION
        while True:
            self._held.look()
            if found := self._held.find(model, version):
                return found
            if time.monotonic() > until:
                raise VersionNotFound(f"Model {model} is not served in version {version!r}.")
            await asyncio.sleep(LOOK_SECONDS / 4)

    async def _hand_over(self, observed: Sequence[Observed]) -> None:
        versions = [(name, version) for name, its in self.service.registry.models().items() for version in its]
        tallies = dict(zip(versions, await self.service.tallies.read(versions), strict=True))
        shadows = [counts for name in self.service.registry.models() for counts in await self.service.shadow.read(name)]
        await self._told.hand_over(HandOver(replica=self._name, observed=observed, tallies=tallies, shadows=shadows))

    def _observe_copy(self, model: ModelInfo, row: RowAnswer) -> None:
        if self._observes:
            self._reporter.keep(Observed.of([row], token=uuid.uuid4().hex, model=model))

    async def _told_after(self, doing: Awaitable[Result]) -> Result | ServiceError:
        """Do something, then tell at once what is served now."""
        found = await _or_error(doing)
        await self._try_to_report()
        return found

    async def _try_to_report(self) -> None:
        try:
            await self._report()
        except ServiceError as error:  # it is told soon again
            logger.warning("the other replicas couldn't be told what this one serves: %s", error)

    async def _keep_reporting(self) -> None:
        told_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await self._report() or time.monotonic() - told_at > HEARTBEAT_SECONDS:
                    told_at = time.monotonic()
                    if not await self._told.heard(self._name, self._number):
                        self._reported = None
                    await self._reporter.flush()
            except Exception as error:
                self._reported = None
                logger.warning(
                    "the other replicas couldn't be told what this one serves; trying again: %s",
                    error,
                    exc_info=not isinstance(error, ServiceError),
                )
                await asyncio.sleep(RETRY_SECONDS)

    async def _report(self) -> bool:
        """Tell what is served if that has changed."""
        self._held.look()
        report, last = self._current(), self._reported
        if last is not None and _same(report, last):
            return False
        self._number += 1
        served = replace(report.served, models=_without_engines(report.served.models))
        await self._told.publish(replace(report, number=self._number, served=served))
        able = served.models if report.trouble is None else {}
        await self._advertise([f"{name}/{version}" for name, versions in able.items() for version in versions])
        self._reported = report
        return True

    def _current(self) -> ReplicaReport:
        service = self.service
        refusal = service.readiness.refusal()
        return ReplicaReport(
            replica=self._name,
            number=self._number,
            served=service.registry.served,
            trouble=None if refusal is None else Trouble(str(refusal), math.ceil(refusal.retry_after or 5.0)),
            unready=service.store_health.unready(),
            problems=tuple(service.readiness.problems()),
        )


async def _or_error(doing: Awaitable[Result]) -> Result | ServiceError:
    try:
        return await doing
    except ServiceError as error:
        return let_go(error)


def _same(one: ReplicaReport, other: ReplicaReport) -> bool:
    told = (one.trouble and one.trouble.reason, one.unready, one.problems)
    return one.served is other.served and told == (
        other.trouble and other.trouble.reason,
        other.unready,
        other.problems,
    )


def _without_engines(
    models: Mapping[str, Mapping[str, ServedModel]],
) -> Mapping[str, Mapping[str, ServedModel]]:
    return {
        name: {version: replace(model, engine=EngineStub()) for version, model in versions.items()}
        for name, versions in models.items()
    }
