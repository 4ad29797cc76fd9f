"""The served models: warms them up, hands them out by name, version or alias, and lets them go when they are idle."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np

from condconv_serve.domain import ServedModel
from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.machine.memory import release_memory
from condconv_serve.store import Bundle
from condconv_serve.store.aliases import DEFAULT_ALIAS, Alias
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Lease:
    """Keeps a model loaded until it is released; releasing twice does nothing."""

    def __init__(self, model: ServedModel, release: Callable[[ServedModel], None]) -> None:
        """Made by `Registry`."""
        self.model = model
        self._release: Callable[[ServedModel], None] | None = release

    def release(self) -> None:
        """The model may go."""
        if self._release is not None:
            release, self._release = self._release, None
            release(self.model)

    def __enter__(self) -> ServedModel:
        """Hold the model."""
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""
        self.release()


class Registry:
    """Implements `condconv_serve.domain.ModelSource` over the bundles that are loaded in this process.

    Thread-safe: what is served is replaced as a whole, so whoever looks sees the state before a change or after it.
    """

    def __init__(
        self,
        load: Callable[[Bundle], ServedModel],
        *,
        default_model: str | None,
        warm_up_sizes: Iterable[int],
        streams: int,
        metrics: Metrics,
        on_gone: Callable[[str, str], None] = lambda name, version: None,
    ) -> None:
        """Create an empty registry.

        Args:
            load: makes an engine of a bundle.
            default_model: name of the model that requests get which name none; the first one loaded if None.
            warm_up_sizes: batch sizes that every model computes on every stream before it is served.
            streams: number of streams.
            metrics: told of every load.
            on_gone: called with the name and version of what has been released or replaced, on any thread.
        """
        self._on_gone = on_gone
        self._load = load
        self._default = default_model
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._streams = streams
        self._metrics = metrics
        self._lock = threading.Lock()
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._aliases: dict[str, Mapping[str, Alias]] = {}
        self._leases: dict[ServedModel, int] = {}
        self._retiring: dict[ServedModel, Callable[[], None]] = {}

    def load(self, bundle: Bundle) -> ServedModel:
        """Load a bundle, warm it up, then serve it, in place of an older copy of the same version if there is one.

        Raises:
            BundleError: the weights, labels or architecture are wrong.
        """
        started = time.monotonic()
        model = self._load(bundle)
        release_memory()
        try:
            self._warm_up(model)
        except BaseException:
            model.engine.close()
            raise
        release_memory()
        seconds = time.monotonic() - started
        with self._lock:
            versions = self._models.get(model.name, {})
            replaced = versions.get(model.version)
            self._models = {**self._models, model.name: {**versions, model.version: model}}
            self._default = self._default or model.name
        if replaced is not None:
            self._on_gone(model.name, model.version)
            self._retire(replaced, lambda: None)
            self._forget_metrics(replaced)
        self._metrics.model_load_seconds.labels(model.name, model.version).set(seconds)
        self._metrics.model_info.labels(*_info(model)).set(1)
        # Zero from the start, so that the first failure counts as an increase.
        for reason in ("error", "out_of_memory"):
            self._metrics.batch_failures.labels(model.name, reason)
        for outcome in ("answered", "deadline_exceeded", "engine_stalled", "inference_failed", "out_of_memory"):
            self._metrics.rows.labels(model.name, outcome)
        logger.info("model %s version %s loaded and warmed up in %.1f s", model.name, model.version, seconds)
        return model

    def unload(self, name: str, version: str, *, done: Callable[[], None] = lambda: None) -> None:
        """Serve a version no more, and release it as soon as all its requests have been answered.

        Args:
            name: of the model.
            version: of it; if it isn't served, nothing happens.
            done: called once its memory has been released, on whatever thread that was.
        """
        with self._lock:
            model = self._models.get(name, {}).get(version)
            if model is None:
                return
            rest = {v: m for v, m in self._models[name].items() if v != version}
            self._models = {**{n: v for n, v in self._models.items() if n != name}, **({name: rest} if rest else {})}
        self._forget_metrics(model)
        self._retire(model, done)

    def _retire(self, model: ServedModel, done: Callable[[], None]) -> None:
        with self._lock:
            self._retiring[model] = done
        self._close_if_idle(model)

    def _close_if_idle(self, model: ServedModel) -> None:
        with self._lock:
            if self._leases.get(model) or model not in self._retiring:
                return
            done = self._retiring.pop(model)

        def close() -> None:
            model.engine.close()
            release_memory()
            if model.version not in self._models.get(model.name, {}):
                self._on_gone(model.name, model.version)
                with contextlib.suppress(KeyError):  # it has answered nothing
                    self._metrics.version_rows.remove(model.name, model.version)
            logger.info("model %s version %s released", model.name, model.version)
            done()

        # Freeing takes a while, and whoever gave the last lease back is perhaps the event loop.
        threading.Thread(target=close, name=f"release-{model.name}-{model.version}", daemon=True).start()

    def _forget_metrics(self, model: ServedModel) -> None:
        self._metrics.model_info.remove(*_info(model))
        self._metrics.model_load_seconds.remove(model.name, model.version)

    def _warm_up(self, model: ServedModel) -> None:
        """Compute every batch size on every stream, each on a thread of its own as in service."""
        size = model.info.preprocessing.image_size

        def compute(stream: int) -> None:
            for rows in self._warm_up_sizes:
                model.engine(np.zeros((rows, size, size, 3), np.uint8), stream)

        with ThreadPoolExecutor(self._streams) as threads:
            list(threads.map(compute, range(self._streams)))

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        """See `condconv_serve.domain.ModelSource.get`."""
        name = name or self._default
        versions = self._models.get(name or "")
        if not name or not versions:
            raise ModelNotFound(f"Model {name!r} is not served; served are: {', '.join(self._models) or 'none'}.")
        aliases = self._aliases.get(name, {})
        if alias := aliases.get(version or DEFAULT_ALIAS):
            version = alias.choose(key)
        version = version or max(versions, key=int)
        if version not in versions:
            known = ", ".join([*sorted(versions, key=int), *sorted(aliases)])
            raise VersionNotFound(f"Model {name} is not served in version {version!r}; served are: {known}.")
        return versions[version]

    def lease(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> Lease:
        """See `condconv_serve.domain.ModelSource.lease`."""
        while True:
            model = self.get(name, version, key=key)
            if lease := self._hold(model):
                return lease

    def hold(self, model: ServedModel) -> Lease:
        """Keep a model loaded that is held already, by a caller who may let go of it sooner."""
        with self._lock:
            self._leases[model] = self._leases.get(model, 0) + 1
        return Lease(model, self._give_back)

    def _hold(self, model: ServedModel) -> Lease | None:
        """Hold a model unless it has gone since it was looked up."""
        with self._lock:
            if self._models.get(model.name, {}).get(model.version) is not model:
                return None
            self._leases[model] = self._leases.get(model, 0) + 1
        return Lease(model, self._give_back)

    def _give_back(self, model: ServedModel) -> None:
        with self._lock:
            self._leases[model] -= 1
            if not self._leases[model]:
                del self._leases[model]
        self._close_if_idle(model)

    def set_aliases(self, name: str, aliases: Mapping[str, Alias]) -> None:
        """Replace all aliases of a model; the versions that they point at must be served."""
        with self._lock:
            self._aliases = {**self._aliases, name: dict(aliases)}

    def aliases(self, name: str) -> Mapping[str, Alias]:
        """The aliases of a model that are in force, by name."""
        return self._aliases.get(name, {})

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """All served models, by name and version."""
        return self._models

    @property
    def default_model(self) -> str | None:
        """Name of the model for requests that name none."""
        return self._default


def _info(model: ServedModel) -> tuple[str, ...]:
    computed_by, architecture = model.computed_by, model.info.manifest.architecture.name
    return (
        model.name,
        model.version,
        architecture,
        computed_by.engine,
        computed_by.precision,
        computed_by.device,
    )
