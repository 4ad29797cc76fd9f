"""What protocols share whose requests are tensors: their inputs, and the way from a request to named outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from condconv_serve.domain import ImageSource, ModelInfo, OutputSpec, PixelSource, RowAnswer, Tensors, Timings
from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.errors import MissingImage, QueueFull, ServiceError, TooManyImages
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.inference.batching import Priority
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.named_outputs import NamedOutputs, outputs_of, stacked

IMAGE = "image"
"""Name of the input that takes encoded images, such as JPEG files."""
PIXELS = "pixels"
"""Name of the input that takes rows which are already cropped and resized."""


def inputs_of(model: ModelInfo) -> tuple[OutputSpec, ...]:
    """The inputs that a model offers, with their shapes per row. A request gives exactly one of them.

    `pixels` may be uint8 or float32.
    """
    size = model.preprocessing.image_size
    return OutputSpec(IMAGE, (), "bytes"), OutputSpec(PIXELS, (size, size, 3), "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRequest:
    """One request.

    Attributes:
        sources: its images, or its rows of pixels.
        outputs: names of what to return, as `outputs_of` has them; all if None.
        detect: what counts as an object, of a model for detection; its usual thresholds if None.
        model: name of the model; the default one if None.
        version: its version or an alias; the alias `default`, or else the newest version, if None.
        timeout_ms: milliseconds that the caller waits; the server's longest if None.
        priority: high, normal or low.
        split_key: where an alias splits traffic, equal keys get equal versions; the request's id if None.
    """

    sources: Sequence[ImageSource | PixelSource]
    outputs: tuple[str, ...] | None = None
    detect: Detect | None = None
    model: str | None = None
    version: str | None = None
    timeout_ms: int | None = None
    priority: str = Priority.NORMAL.name.lower()
    split_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAnswer:
    """The answer: which model gave it, and its outputs `[N, ...]` by name, in the order asked for."""

    model: ModelInfo
    tensors: Tensors


class TensorInference:
    """Answers requests of tensors. All fronts of such protocols use one."""

    def __init__(self, images: ImagePipeline, gatekeeper: Gatekeeper, *, max_images: int) -> None:
        """Take the parts; a request may have `max_images` rows."""
        self._images = images
        self._gatekeeper = gatekeeper
        self._max_images = max_images

    async def check(
        self,
        facts: RequestFacts,
        *,
        model: str | None = None,
        version: str | None = None,
        split_key: str | None = None,
    ) -> None:
        """Refuse a request before its body is read, if not even one row of it could be admitted.

        Raises:
            CapacityError: nothing can be answered now. ModelNotFound, VersionNotFound: there is no such model.
        """
        gatekeeper = self._gatekeeper
        gatekeeper.check_ready()
        await self._images.plane.check(
            model,
            version,
            priority=Priority.HIGH,
            deadline=gatekeeper.deadline(),
            split_key=gatekeeper.split_key(facts, split_key),
            cache=facts.cache,
        )

    async def check_unnamed(self, facts: RequestFacts) -> None:
        """Refuse a request before its body is read, in which its model stands, if the queue is full or nobody serves.

        Raises:
            CapacityError: nothing can be answered now, whatever the model.
        """
        self._gatekeeper.check_ready()
        try:
            await self._images.plane.check(cache=facts.cache)
        except QueueFull:
            raise
        except ServiceError:  # of the default model; the request may name another one
            pass

    async def infer(
        self, facts: RequestFacts, request: TensorRequest, *, deadline: Deadline | None = None
    ) -> TensorAnswer:
        """Answer a request that was admitted. Cancel it, and its rows leave the queue.

        Args:
            facts: of the request; model, rows, deadline and timings are noted in them.
            request: what is asked for.
            deadline: when the caller stops waiting, if the protocol tells; else `request.timeout_ms` says it.

        Raises:
            MissingImage, TooManyImages: no rows, or more than allowed.
            InvalidParameter: unknown outputs, thresholds that the model can't use, a wrong priority or timeout.
            ServiceError: why the request, or the first row that failed, can't be answered. With several rows the
                message says which one it was.
        """
        gatekeeper, count = self._gatekeeper, len(request.sources)
        gatekeeper.check_ready()
        if not count:
            raise MissingImage("The request has no rows; send at least one.")
        if count > self._max_images:
            raise TooManyImages(f"The request has {count} rows; {self._max_images} are allowed.")
        facts.deadline = deadline or gatekeeper.deadline(request.timeout_ms)
        task = _WithTimings(request.outputs, request.detect)
        answered = await self._images.run(
            request.sources,
            task,
            model=request.model,
            version=request.version,
            split_key=gatekeeper.split_key(facts, request.split_key),
            priority=gatekeeper.priority(request.priority),
            deadline=facts.deadline,
            cache=facts.cache,
        )
        model = answered.model
        facts.model, facts.rows = f"{model.name}/{model.version}", count
        rows = [result.prediction for result in answered.results if result.prediction is not None]
        facts.note_answer([timings for timings, _ in rows])
        for place, result in enumerate(answered.results):
            if result.error is not None:
                raise result.error if count == 1 else _placed(result.error, place, count)
        return TensorAnswer(model=model, tensors=stacked([tensors for _, tensors in rows]))


@dataclass(frozen=True, slots=True)
class _WithTimings:
    """The named outputs, all of them if no names are given, with the row's timings."""

    names: tuple[str, ...] | None
    detect: Detect | None

    def check(self, model: ModelInfo) -> None:
        self._task(model).check(model)

    def answer(self, row: RowAnswer, model: ModelInfo) -> tuple[Timings, Tensors]:
        return row.timings, self._task(model).answer(row, model)

    def scores_in(self, answer: tuple[Timings, Tensors]) -> list[float] | None:
        _, tensors = answer
        return NamedOutputs(tuple(tensors)).scores_in(tensors)

    def _task(self, model: ModelInfo) -> NamedOutputs:
        names = self.names if self.names is not None else tuple(output.name for output in outputs_of(model))
        return NamedOutputs(names, self.detect)


def _placed(error: ServiceError, place: int, count: int) -> ServiceError:
    placed = copy.copy(error)
    placed.args = (f"Image {place} of {count}: {error}",)
    return placed
