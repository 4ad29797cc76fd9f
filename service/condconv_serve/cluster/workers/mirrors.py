"""What a front knows of the engine process without asking: which models are served, and whether it is ready."""

from __future__ import annotations

from collections.abc import Callable

from condconv_serve.cluster.engine_stub import EngineStub
from condconv_serve.cluster.workers.messages import ModelsChanged, NewModel, ReadinessReport
from condconv_serve.domain import JpegCropper, ServedModel
from condconv_serve.errors import CapacityError, Draining, NotReady
from condconv_serve.serving.served import LeasedModels, Served
from condconv_serve.serving.unserved import LOADING_SECONDS
from condconv_serve.store.default import Default

RESTART_SECONDS = 2.0
"""After so long a new try makes sense when the engine process has gone; a model that loads longer says so itself."""
STARTING = "The engine process is starting."
RESTARTING = "The engine process has ended and is being started again."
HANGING = "The engine process doesn't answer."


class MirroredModels(LeasedModels):
    """The served models, as the engine process told it last.

    A model that is served no more stays loaded until the last request of this front that uses it has ended: the engine
    process waits until `on_release` was called.
    """

    def __init__(self) -> None:
        """Start without models."""
        nothing = Default(name=None, reason="The service is still looking for its default model.")
        super().__init__(Served(default=nothing), release_memory=lambda: None)

    def follow(
        self,
        changed: ModelsChanged,
        connection: object,
        *,
        on_release: Callable[[int], None],
        cropper_of: Callable[[int], JpegCropper],
    ) -> None:
        """Take what is served now.

        Args:
            changed: all of it; copies that are known already have their number only.
            connection: tells copies of one engine process from those of another one.
            on_release: gets the number of a copy that no request of this front uses any more; called on any thread.
            cropper_of: makes what decodes JPEGs for a copy that has a decoder of its own.
        """
        before = self.served
        known = {
            model.engine.number: model
            for versions in before.models.values()
            for model in versions.values()
            if isinstance(model.engine, EngineStub) and model.engine.connection is connection
        }
        for number, new in changed.new.items():
            known[number] = _model(new, EngineStub(connection, number), cropper_of)
        models = {
            name: {version: known[number] for version, number in versions.items()}
            for name, versions in changed.models.items()
        }
        served = Served(default=changed.default, models=models, aliases=changed.aliases, unserved=changed.unserved)
        self._replace(served)
        for versions in before.models.values():
            for model in versions.values():
                if not served.holds(model):
                    self._leases.retire(model, _releasing(model, connection, on_release))

    def _replace(self, served: Served) -> None:
        self.served = served


def _model(new: NewModel, engine: EngineStub, cropper_of: Callable[[int], JpegCropper]) -> ServedModel:
    crop = cropper_of(engine.number) if new.crops_jpegs else None
    return ServedModel(info=new.info, engine=engine, computed_by=new.computed_by, crop_jpeg=crop)


def _releasing(model: ServedModel, connection: object, on_release: Callable[[int], None]) -> Callable[[], None]:
    engine = model.engine
    if isinstance(engine, EngineStub) and engine.connection is connection:
        return lambda: on_release(engine.number)
    return lambda: None  # the process that held it has gone


class MirroredReadiness:
    """Whether requests can be answered: as the engine process says, if it is there, and this front isn't draining."""

    def __init__(self) -> None:
        """Start without an engine process."""
        self._state: ReadinessReport | None = None
        self._reason = STARTING
        self._draining = False

    def follow(self, state: ReadinessReport) -> None:
        """Take what the engine process says."""
        self._state = state

    def hangs(self) -> None:
        """The engine process is there, but has said nothing for too long."""
        self._state, self._reason = None, HANGING

    def lost(self) -> None:
        """The engine process has gone."""
        self._state, self._reason = None, RESTARTING

    def drain(self) -> None:
        """This front is about to end."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether this front, or all of the service, is about to end."""
        return self._draining or (self._state is not None and self._state.draining)

    def refusal(self) -> CapacityError | None:
        """Why requests can't be answered now; None if they can."""
        if self._state is None:
            return self.gone()
        return self._state.refusal and _copy(self._state.refusal)

    def unready(self) -> CapacityError | None:
        """Why requests should go elsewhere; None if they should come."""
        if self.draining:
            return Draining("The service is shutting down.", retry_after=1.0)
        if self._state is None:
            return self.gone()
        return self._state.unready and _copy(self._state.unready)

    def problems(self) -> list[str]:
        """What else is wrong, a sentence each."""
        return [] if self._state is None else self._state.problems

    def gone(self) -> NotReady:
        """The error for what needs the engine process, which isn't there."""
        return NotReady(self._reason, retry_after=LOADING_SECONDS if self._reason == STARTING else RESTART_SECONDS)


def _copy(error: CapacityError) -> CapacityError:
    """A new one to raise: an error collects tracebacks each time."""
    return type(error)(*error.args, retry_after=error.retry_after)
