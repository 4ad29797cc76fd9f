"""What the routes are given to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.api.body import BodyLimits
from service.classifier import Classifier
from service.domain import Ablator, ModelSource, ServedModel
from service.metrics import Metrics
from service.readiness import Readiness
from service.routing.live import LiveRouting
from service.routing.recent import RecentRequests
from service.telemetry import Tracer


class ServedModels(ModelSource, Protocol):
    """The models that the API shows."""

    @property
    def default_model(self) -> str | None:
        """Name of the model for requests that name none."""
        ...

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """All served models, by name and version."""
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
    routing: LiveRouting | None = None
    recent: RecentRequests | None = None
    ablator: Ablator | None = None
    tracer: Tracer = field(default_factory=Tracer)
