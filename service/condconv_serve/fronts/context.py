"""What the fronts work with, as one value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from condconv_serve.domain import Ablator, ModelSource, ServedModel
from condconv_serve.fronts.gatekeeper import Gatekeeper, ReadyState
from condconv_serve.fronts.long_reads import LongReads
from condconv_serve.http.body import OpenBodies
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import Window
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.shadow.counts import ShadowCounts
from condconv_serve.store.aliases import NO_MIRROR, Alias
from condconv_serve.telemetry.exposition import Exposition
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies, VersionTally
from condconv_serve.telemetry.tracing import Tracer


class ServedModels(ModelSource, Protocol):
    """The models that the routes show."""

    @property
    def default_model(self) -> str | None:
        """Name of the model for requests that name none."""
        ...

    def aliases(self, name: str) -> Mapping[str, Alias]:
        """The aliases of a model that are in force, by name."""
        ...

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """All served models, by name and version."""
        ...


class VersionAdmin(Protocol):
    """What the routes show of versions, and let admins change: `condconv_serve.serving.version_admin.VersionAdmin`."""

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """The state of every version of every model. It reads the store, so don't call it on the event loop."""
        ...

    async def load(self, name: str, version: str) -> VersionStatus:
        """Load a version and keep it."""
        ...

    async def unload(self, name: str, version: str) -> VersionStatus:
        """Serve a version no more."""
        ...

    async def set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        """Point an alias at versions, by weight, and mirror its requests to others, by percentage."""
        ...

    async def roll_back(self, name: str, alias: str) -> Alias:
        """Point an alias back to where it pointed before."""
        ...

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        ...


class RoutingFigures(Protocol):
    """Live routing statistics: `condconv_serve.routing.live.LiveRouting`, or several of them, added up."""

    async def state(self, model: str, version: str, windows: Sequence[Window]) -> RoutingState | None:
        """A copy of a version's windows; None if nothing is known of the version."""
        ...

    async def class_means(self, model: str, version: str, classes: Collection[int]) -> ClassMeans:
        """Images of classes and their mean weights; a class without images is left out."""
        ...

    async def reset(self, model: str | None = None, version: str | None = None) -> Sequence[tuple[str, str]]:
        """Forget what was counted of all models, of all versions of a model, or of one version.

        Returns:
            Names and versions of those that were reset.
        """
        ...


class RecentAnswers(Protocol):
    """The routing of recent requests: `condconv_serve.routing.recent.RecentRequests`, for all fronts."""

    def remember(self, request: RecentRequest, *, owner: str | None) -> None:
        """Keep a request for its owner: the name of the API key that sent it. Nobody waits until it is kept."""
        ...

    async def find(self, request_id: str, *, owner: str | None) -> RecentRequest:
        """Return a request of this owner.

        Raises:
            RoutingNotFound: there is no such request, or it has another owner.
        """
        ...


class TallySource(Protocol):
    """What each version has done: `condconv_serve.telemetry.tally.Tallies`, or several of them, added up."""

    async def read(self, versions: Sequence[tuple[str, str]]) -> Sequence[VersionTally]:
        """Copies of the figures of versions, by name and version; zeros if nothing has been asked of one."""
        ...


class Shadows(Protocol):
    """How versions compare that got copies of requests: `condconv_serve.shadow.traffic.Shadow`."""

    async def read(self, name: str) -> Sequence[ShadowCounts]:
        """The figures of a model's versions, in order."""
        ...


class NoShadows:
    """Nothing is mirrored."""

    async def read(self, name: str) -> Sequence[ShadowCounts]:
        """No figures."""
        return ()


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request's body may hold."""

    max_body_bytes: int
    max_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """What the fronts work with.

    A front may run in another process than the engine. So what it asks of state that all fronts share is awaited, or
    is a mirror (`models`, `readiness`), and what comes and goes can be pickled.

    Attributes:
        images: decodes images, and has them computed.
        models: what is served.
        metrics: where this process counts.
        exposition: writes down the metrics of all processes.
        limits: of requests' bodies.
        gatekeeper: decides who may do what, and until when.
        readiness: whether the service takes requests, and why not.
        versions: what admins may change, and the state of each version.
        routing: keeps live statistics; None if there are none.
        recent: keeps recent requests; None if none are kept.
        ablator: computes ablations; None if there are none.
        drawer: draws pictures; whoever makes it closes it.
        tallies: what each version has done.
        shadows: how versions compare that got copies of requests.
        tracer: exports traces of requests, if it is asked to.
        bodies: those that are being received, and how long they may take; whoever ends the service gives them up.
        long_reads: gives bodies that take long to read their turns.
    """

    images: ImagePipeline
    models: ServedModels
    metrics: Metrics
    exposition: Exposition
    limits: BodyLimits
    gatekeeper: Gatekeeper
    readiness: ReadyState
    versions: VersionAdmin
    routing: RoutingFigures | None = None
    recent: RecentAnswers | None = None
    ablator: Ablator | None = None
    drawer: Drawer = field(default_factory=Drawer)
    tallies: TallySource = field(default_factory=Tallies)
    shadows: Shadows = field(default_factory=NoShadows)
    tracer: Tracer = field(default_factory=Tracer)
    bodies: OpenBodies = field(default_factory=OpenBodies)
    long_reads: LongReads = field(default_factory=LongReads)
