"""Who makes engines: the type of what the service is given for it."""

from __future__ import annotations

from typing import Protocol

from condconv_serve.domain import ServedModel
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.store import Bundle
from condconv_serve.telemetry.metrics import Metrics


class ModelLoader(Protocol):
    """Makes an engine from a bundle. A test may pass one that needs no TensorFlow."""

    def __call__(self, bundle: Bundle, plan: EnginePlan, *, metrics: Metrics | None = None) -> ServedModel:
        """Load a bundle as planned; the errors are those of `condconv_serve.runtime.loading.load_model`."""
        ...
