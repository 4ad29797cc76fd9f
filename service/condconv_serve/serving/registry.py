"""The served models: adds them once they are warm, finds them by name, version or alias, and retires them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import get_args

from condconv_serve.domain import ServedModel
from condconv_serve.domain.caching import CacheResult
from condconv_serve.domain.facts import deadlines_of
from condconv_serve.machine.memory import release_memory
from condconv_serve.serving.served import LeasedModels, Served
from condconv_serve.serving.unserved import Trouble, Unserved
from condconv_serve.serving.warm_up import warm_up
from condconv_serve.store import Bundle
from condconv_serve.store.aliases import Alias
from condconv_serve.store.default import Default
from condconv_serve.telemetry.metrics import Metrics

_NOTHING = Unserved()
Models = Mapping[str, Mapping[str, ServedModel]]
logger = logging.getLogger(__name__)


class Registry(LeasedModels):
    """The models that are loaded in this process."""

    def __init__(
        self,
        load: Callable[[Bundle], ServedModel],
        *,
        default_model: str | None = None,
        warm_up_sizes: Iterable[int],
        streams: int,
        metrics: Metrics,
        on_gone: Callable[[str, str], None] = lambda name, version: None,
        on_released: Callable[[ServedModel], None] = lambda model: None,
        release_memory: Callable[[], None] = release_memory,
    ) -> None:
        """Create an empty registry.

        Args:
            load: makes an engine from a bundle.
            default_model: name of the model for requests that name none, until `set_default` says otherwise.
            warm_up_sizes: batch sizes that every model computes on every stream before it is served.
            streams: number of streams.
            metrics: counts loads.
            on_gone: called with name and version of a model that was released or replaced, on any thread.
            on_released: called with a model that nobody holds any more, on any thread.
            release_memory: gives freed memory back to the system; called after each load and each release.
        """
        default = Default(name=default_model, reason="The service is still looking for its default model.")
        super().__init__(Served(default=default), release_memory=release_memory)
        self._on_gone = on_gone
        self._on_released = on_released
        self._release_memory = release_memory
        self._load = load
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._streams = streams
        self._metrics = metrics

    def load(self, bundle: Bundle) -> ServedModel:
        """Load a bundle, warm it up, then serve it, in place of an older copy of the same version if there is one.

        Raises:
            BundleError: the weights, labels or architecture are wrong.
        """
        started = time.monotonic()
        model = self._load(bundle)
        self._release_memory()
        try:
            warm_up(model, sizes=self._warm_up_sizes, streams=self._streams)
        except BaseException:
            model.engine.close()
            raise
        self._release_memory()
        seconds = time.monotonic() - started
        before = self._change(lambda served: {"models": _with(served.models, model)})
        replaced = before.models.get(model.name, {}).get(model.version)
        if replaced is not None:
            self._on_gone(model.name, model.version)
            self._leases.retire(replaced, lambda: self._after_release(replaced))
            self._forget_metrics(replaced)
        self._start_metrics(model, seconds)
        logger.info("model %s version %s loaded and warmed up in %.1f s", model.name, model.version, seconds)
        return model

    def unload(self, name: str, version: str, *, done: Callable[[], None] = lambda: None) -> None:
        """Stop serving a version, and release its memory once all its requests have been answered.

        Args:
            name: of the model.
            version: of it; if it isn't served, nothing happens.
            done: called once its memory has been released, on any thread.
        """
        before = self._change(lambda served: {"models": _without(served.models, name, version)})
        model = before.models.get(name, {}).get(version)
        if model is None:
            return
        self._forget_metrics(model)

        def released() -> None:
            self._after_release(model)
            done()

        self._leases.retire(model, released)

    def retiring(self) -> Mapping[str, Collection[str]]:
        """Versions by model that get no new requests, but whose memory has not been released yet."""
        found: dict[str, set[str]] = {}
        for model in self._leases.retiring():
            found.setdefault(model.name, set()).add(model.version)
        return found

    def set_aliases(self, name: str, aliases: Mapping[str, Alias]) -> None:
        """Replace all aliases of a model; the versions that they point at must be served."""
        self._change(lambda served: {"aliases": {**served.aliases, name: dict(aliases)}})

    def set_unserved(self, name: str, unserved: Unserved | None) -> None:
        """Say what of a model lies in the store but can't be answered; None if it has gone from the store."""

        def change(served: Served) -> Mapping[str, Mapping[str, Unserved]]:
            others = {known: its for known, its in served.unserved.items() if known != name}
            return {"unserved": others if unserved is None else {**others, name: unserved}}

        self._change(change)

    def unserved(self) -> Mapping[str, Unserved]:
        """What can't be answered of each model that lies in the store."""
        return self.served.unserved

    def trouble(self, name: str) -> Trouble | None:
        """Why a model can't be answered by name, or by one of its aliases; None if it can, or isn't there."""
        return self.served.unserved.get(name, _NOTHING).trouble()

    def knows(self, name: str) -> bool:
        """Whether a model is served, or was in the store when somebody last looked."""
        return name in self.served.models or name in self.served.unserved

    def set_default(self, default: Default) -> None:
        """Say which model gets the requests that name none, or why there is none."""
        self._change(lambda _: {"default": default})

    def default_trouble(self) -> Trouble | None:
        """Why there is no default model, if the store names one that can't be used; None if it names none."""
        default = self.served.default
        return Trouble(default.reason) if default.broken else None

    def _after_release(self, model: ServedModel) -> None:
        self._on_released(model)
        if model.version not in self.served.models.get(model.name, {}):
            self._on_gone(model.name, model.version)
            self._metrics.rows.forget(model.name, model.version)

    def _start_metrics(self, model: ServedModel, load_seconds: float) -> None:
        self._metrics.model_load_seconds.labels(model.name, model.version).set(load_seconds)
        self._metrics.model_info.labels(*_info(model)).set(1)
        self._metrics.native_info.labels(*_native_info(model)).set(1)
        for computed_by, layers in _native_layers(model).items():
            self._metrics.native_layers.labels(model.name, model.version, computed_by).set(layers)
        # Zero from the start, so that the first one counts as an increase.
        for reason in ("error", "out_of_memory"):
            self._metrics.batch_failures.labels(model.name, reason)
        outcomes = ("answered", "deadline_exceeded", "engine_stalled", "inference_failed", "out_of_memory")
        self._metrics.rows.start(
            model.name,
            outcomes=[(outcome, by) for outcome in outcomes for by in deadlines_of(outcome)],
            cached=get_args(CacheResult),
        )

    def _forget_metrics(self, model: ServedModel) -> None:
        self._metrics.model_info.remove(*_info(model))
        self._metrics.native_info.remove(*_native_info(model))
        for computed_by in _native_layers(model):
            self._metrics.native_layers.remove(model.name, model.version, computed_by)
        self._metrics.model_load_seconds.remove(model.name, model.version)


def _with(models: Models, model: ServedModel) -> Models:
    return {**models, model.name: {**models.get(model.name, {}), model.version: model}}


def _without(models: Models, name: str, version: str) -> Models:
    rest = {known: model for known, model in models.get(name, {}).items() if known != version}
    return {**{known: its for known, its in models.items() if known != name}, **({name: rest} if rest else {})}


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


def _native_info(model: ServedModel) -> tuple[str, ...]:
    native = model.computed_by.native
    return model.name, model.version, native.state, native.isa or ""


def _native_layers(model: ServedModel) -> dict[str, int]:
    native = model.computed_by.native
    return {"native": native.native_layers, "tensorflow": native.tensorflow_layers}
