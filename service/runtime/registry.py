"""The served models: loads bundles, warms them up, and hands them out by name and version."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from service.domain import ServedModel
from service.errors import ModelNotFound, VersionNotFound
from service.metrics import Metrics
from service.runtime.machine import release_memory
from service.store import Bundle

logger = logging.getLogger(__name__)


class Registry:
    """Implements `service.domain.ModelSource` over bundles loaded in this process."""

    def __init__(
        self,
        load: Callable[[Bundle], ServedModel],
        *,
        default_model: str | None,
        warm_up_sizes: Iterable[int],
        streams: int,
        metrics: Metrics,
    ) -> None:
        """Create an empty registry.

        Args:
            load: makes an engine of a bundle.
            default_model: name of the model that requests get which name none; the first one loaded if None.
            warm_up_sizes: batch sizes that every model computes on every stream before it is served.
            streams: number of streams.
            metrics: told of every load.
        """
        self._load = load
        self._default = default_model
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._streams = streams
        self._metrics = metrics
        self._models: dict[str, dict[str, ServedModel]] = {}

    def load(self, bundle: Bundle) -> ServedModel:
        """Load a bundle, warm it up, then serve it.

        Raises:
            BundleError: the weights, labels or architecture are wrong.
        """
        started = time.monotonic()
        model = self._load(bundle)
        release_memory()
        self._warm_up(model)
        release_memory()
        self._models.setdefault(model.name, {})[model.version] = model
        self._default = self._default or model.name
        seconds = time.monotonic() - started
        self._metrics.model_load_seconds.labels(model.name, model.version).set(seconds)
        computed_by = model.computed_by
        self._metrics.model_info.labels(
            model.name,
            model.version,
            bundle.manifest.architecture.name,
            computed_by.engine,
            computed_by.precision,
            computed_by.device,
        ).set(1)
        logger.info("model %s version %s loaded and warmed up in %.1f s", model.name, model.version, seconds)
        return model

    def _warm_up(self, model: ServedModel) -> None:
        """Compute every batch size on every stream, each on a thread of its own as in service."""
        size = model.preprocessing.image_size

        def compute(stream: int) -> None:
            for rows in self._warm_up_sizes:
                model.engine(np.zeros((rows, size, size, 3), np.uint8), stream)

        with ThreadPoolExecutor(self._streams) as threads:
            list(threads.map(compute, range(self._streams)))

    def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """See `service.domain.ModelSource.get`."""
        name = name or self._default
        versions = self._models.get(name or "")
        if not versions:
            raise ModelNotFound(f"Model {name!r} is not served; served are: {', '.join(self._models) or 'none'}.")
        if version is not None and version not in versions:
            known = ", ".join(sorted(versions, key=int))
            raise VersionNotFound(f"Model {name} is not served in version {version!r}; served are: {known}.")
        return versions[version or max(versions, key=int)]

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """All served models, by name and version."""
        return self._models

    @property
    def default_model(self) -> str | None:
        """Name of the model for requests that name none."""
        return self._default
