"""What the routes are given to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from condconv_serve.domain import Ablator, ModelSource, ServedModel
from condconv_serve.fronts.native.body import BodyLimits
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.recent import RecentRequests
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from condconv_serve.tasks.classification import Classifier
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tracing import Tracer


class ServedModels(ModelSource, Protocol):
    """The models that the API shows."""

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


class VersionControl(Protocol):
    """What the API shows of versions, and lets be changed: `condconv_serve.serving.version_admin.VersionAdmin`."""

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """How every version of every model is doing; looks at the store, so not for the event loop."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the routes work with; `request_timeout` is in seconds.

    Without `routing` no live statistics are kept, without `recent` no recent requests, and without
    `ablator` there are no ablations.
    """

    classifier: Classifier
    models: ServedModels
    metrics: Metrics
    limits: BodyLimits
    request_timeout: float
    readiness: Readiness
    versions: VersionControl
    routing: LiveRouting | None = None
    recent: RecentRequests | None = None
    ablator: Ablator | None = None
    tracer: Tracer = field(default_factory=Tracer)
