"""What the routes are given to work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.api.body import BodyLimits
from service.classifier import Classifier
from service.domain import ModelSource, ServedModel
from service.metrics import Metrics
from service.readiness import Readiness
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
    """What the routes work with; `request_timeout` is in seconds."""

    classifier: Classifier
    models: ServedModels
    metrics: Metrics
    limits: BodyLimits
    request_timeout: float
    readiness: Readiness
    tracer: Tracer = field(default_factory=Tracer)
