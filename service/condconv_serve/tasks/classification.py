"""The one use case: bytes of images in, classes and routing weights out."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import (
    ClassScore,
    ImageResult,
    ImageSource,
    ModelOutput,
    ModelSource,
    Prediction,
    RoutingTrace,
    Row,
    ServedModel,
    Timings,
)
from condconv_serve.errors import InferenceFailed, InvalidParameter, MissingImage, OutOfMemory, ServiceError
from condconv_serve.imaging import make_row
from condconv_serve.inference.batching import Admission, Batcher, Priority, ending_at
from condconv_serve.routing.live import LiveRouting
from condconv_serve.telemetry.metrics import Metrics

DEFAULT_TOP_K = 5
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowOutput:
    """What the network says of one row: `logits` float32 `[classes]`, `routing` float32 `[blocks, experts]`."""

    logits: NDArray[np.float32]
    routing: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request: one result per image, in order."""

    model: ServedModel
    results: tuple[ImageResult, ...]


RowBatcher = Batcher[ServedModel, Row, RowOutput]


def compute_batch(model: ServedModel, rows: Sequence[Row], stream: int) -> list[RowOutput]:
    """Run one batch on the calling thread, which is that of a stream."""
    output: ModelOutput = model.engine(np.stack(rows), stream)
    return [RowOutput(logits, routing) for logits, routing in zip(output.logits, output.routing, strict=True)]


class Classifier:
    """Decodes images in its own threads and sends them through the batcher."""

    def __init__(
        self,
        models: ModelSource,
        batcher: RowBatcher,
        *,
        decoders: ThreadPoolExecutor,
        max_pixels: int,
        metrics: Metrics,
        routing: LiveRouting | None = None,
    ) -> None:
        """Wire the parts together.

        Args:
            models: finds the model of a request.
            batcher: computes rows.
            decoders: threads that decode, as many as may decode at once.
            max_pixels: most pixels that an image's header may announce.
            metrics: counts rows and stages.
            routing: counts the routing of answered images; nobody does if None.
        """
        self._models = models
        self._batcher = batcher
        self._decoders = decoders
        self._max_pixels = max_pixels
        self._metrics = metrics
        self._routing = routing

    async def classify(
        self,
        images: Sequence[ImageSource],
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        priority: Priority = Priority.NORMAL,
        deadline: float = math.inf,
        split_key: str | None = None,
    ) -> Classification:
        """Classify the images of one request.

        Args:
            images: undecoded images, at least one.
            model: name of the model; the default one if None.
            version: its version or an alias; the alias `default`, or else the newest version, if None.
            top_k: how many classes to return, best first; `DEFAULT_TOP_K`, or all if there are fewer, if None.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.
            split_key: where an alias splits traffic, equal keys get equal versions; see `ModelSource.get`.

        Returns:
            A result per image; an image that fails carries its error and leaves the others alone.

        Raises:
            InvalidParameter: `top_k` is not between 1 and the model's number of classes.
            ModelNotFound: no such model; VersionNotFound: no such version.
            QueueFull: the rows don't fit into the queue; no image was decoded.
            WaitTooLong: they would not be computed by the deadline; no image was decoded.
            Draining: the service is shutting down.
        """
        with self._models.lease(model, version, key=split_key) as served:
            chosen = min(DEFAULT_TOP_K, len(served.labels)) if top_k is None else top_k
            return await self._classify(served, images, chosen, priority, deadline)

    async def _classify(
        self, served: ServedModel, images: Sequence[ImageSource], top_k: int, priority: Priority, deadline: float
    ) -> Classification:
        if not 1 <= top_k <= len(served.labels):
            raise InvalidParameter(
                f"top_k must be from 1 to {len(served.labels)}, the number of classes of {served.name}, not {top_k}."
            )
        with self._batcher.admit(served, len(images), priority=priority, deadline=deadline) as admission:
            self._metrics.rows_accepted.labels(served.name).inc(len(images))
            outcomes: list[str] = []
            try:
                results = await asyncio.gather(
                    *(
                        self._result(served, image, i, top_k, admission, deadline, outcomes)
                        for i, image in enumerate(images)
                    )
                )
            finally:  # whoever has none was cancelled, perhaps before it began
                outcomes += ["cancelled"] * (len(images) - len(outcomes))
                for outcome in outcomes:
                    self._metrics.rows.labels(served.name, outcome).inc()
        return Classification(served, tuple(results))

    def check_capacity(
        self,
        model: str | None,
        version: str | None,
        *,
        priority: Priority,
        deadline: float,
        split_key: str | None = None,
    ) -> None:
        """Refuse a request before its body has been read, if not even one image of it could be taken.

        Raises:
            ModelNotFound, VersionNotFound, QueueFull, WaitTooLong, Draining: as `classify` would.
        """
        served = self._models.get(model, version, key=split_key)
        self._batcher.check(served, 1, priority=priority, deadline=deadline)

    async def decode(self, image: ImageSource, model: ServedModel, *, deadline: float) -> tuple[Row, float]:
        """Decode one image into a row for the network: the row, and the seconds it took.

        Raises:
            ImageError: it can't be used. MissingImage: it is empty. DeadlineExceeded: it was not decoded in time.
        """
        if not image.data:
            raise MissingImage("The image is empty.")
        async with ending_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, image.data, model)

    async def _result(
        self,
        model: ServedModel,
        image: ImageSource,
        position: int,
        top_k: int,
        admission: Admission[ServedModel],
        deadline: float,
        outcomes: list[str],
    ) -> ImageResult:
        identity = image.id if image.id is not None else str(position)
        try:
            prediction = await self._predict(model, image, top_k, admission, deadline)
        except ServiceError as error:
            outcomes.append(error.slug)
            return ImageResult(id=identity, filename=image.filename, error=error)
        except Exception:  # a defect of ours must not take the request's other images along
            logger.exception("an image of %d bytes met an unexpected error", len(image.data))
            unexpected = ServiceError("Something went wrong in the service; its log says what.")
            outcomes.append(unexpected.slug)
            return ImageResult(id=identity, filename=image.filename, error=unexpected)
        outcomes.append("answered")
        self._observe(model, prediction)
        return ImageResult(id=identity, filename=image.filename, prediction=prediction)

    async def _predict(
        self, model: ServedModel, image: ImageSource, top_k: int, admission: Admission[ServedModel], deadline: float
    ) -> Prediction:
        started = time.monotonic()
        pixels, decode_seconds = await self.decode(image, model, deadline=deadline)
        row = await self._batcher.submit(model, pixels, admission, deadline=deadline)
        classes = top_classes(row.output.logits, model, top_k)
        return Prediction(
            classes=classes,
            routing=RoutingTrace(model.routing_blocks, row.output.routing, model.experts_per_block),
            timings=Timings(
                decode=decode_seconds,
                queue=row.queue,
                inference=row.inference,
                total=time.monotonic() - started,
            ),
            batch_size=row.batch_size,
        )

    def _decode(self, data: bytes, model: ServedModel) -> tuple[Row, float]:
        started = time.monotonic()
        try:
            row = make_row(data, model.preprocessing, max_pixels=self._max_pixels, crop_jpeg=model.crop_jpeg)
        except MemoryError as error:
            raise OutOfMemory("There is too little memory to decode this image.", retry_after=5.0) from error
        return row, time.monotonic() - started

    def _observe(self, model: ServedModel, prediction: Prediction) -> None:
        self._metrics.version_rows.labels(model.name, model.version).inc()
        timings = prediction.timings
        for stage in ("decode", "queue", "inference", "total"):
            self._metrics.stage_seconds.labels(stage).observe(getattr(timings, stage))
        if self._routing is not None:
            self._routing.observe(model, prediction.routing.weights, prediction.classes[0].index)


def top_classes(logits: NDArray[np.float32], model: ServedModel, top_k: int) -> tuple[ClassScore, ...]:
    """The `top_k` most probable classes of one row, best first; ties in the order of the classes.

    Args:
        logits: `[classes]`.
        model: names the classes.
        top_k: from 1 to the number of classes.

    Raises:
        InferenceFailed: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise InferenceFailed("The engine's answer for this image holds numbers that are not finite.")
    probabilities = softmax(logits)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return tuple(
        ClassScore(int(i), model.labels[i].label, model.labels[i].synset, float(probabilities[i])) for i in best
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of all classes of one row, `[classes]`."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum()
    return probabilities
