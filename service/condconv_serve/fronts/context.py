"""What the fronts work with, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from condconv_serve.domain import Ablator, ModelSource, ServedModel
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.long_reads import LongReads
from condconv_serve.http.body import OpenBodies
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.recent import RecentRequests
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
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

    async def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> Alias:
        """Point an alias at versions, by weight."""
        ...

    async def roll_back(self, name: str, alias: str) -> Alias:
        """Point an alias back to where it pointed before."""
        ...

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        ...


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request's body may hold."""

    max_body_bytes: int
    max_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    """What the fronts work with.

    Attributes:
        gatekeeper: decides who may do what, and until when.
        routing: keeps live statistics; None if there are none.
        recent: keeps recent requests; None if none are kept.
        ablator: computes ablations; None if there are none.
        drawer: draws pictures; whoever makes it closes it.
        tallies: what each version has done.
        bodies: those that are being received, and how long they may take; whoever ends the service gives them up.
        long_reads: gives bodies that take long to read their turns.
    """

    images: ImagePipeline
    models: ServedModels
    metrics: Metrics
    limits: BodyLimits
    gatekeeper: Gatekeeper
    readiness: Readiness
    versions: VersionAdmin
    routing: LiveRouting | None = None
    recent: RecentRequests | None = None
    ablator: Ablator | None = None
    drawer: Drawer = field(default_factory=Drawer)
    tallies: Tallies = field(default_factory=Tallies)
    tracer: Tracer = field(default_factory=Tracer)
    bodies: OpenBodies = field(default_factory=OpenBodies)
    long_reads: LongReads = field(default_factory=LongReads)
