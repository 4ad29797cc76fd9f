"""Answers about images by a running server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from pydantic import TypeAdapter

from condconv_serve.cli.results import AnsweringModel
from condconv_serve.client import Client, ModelDetails
from condconv_serve.domain import (
    ClassifiedImage,
    Detection,
    EngineDescription,
    ImageResult,
    Prediction,
    RoutedAnswer,
    RoutingLayout,
    RoutingTrace,
)
from condconv_serve.errors import InvalidParameter, NoDefaultModel
from condconv_serve.inputs.files import LocalImage
from condconv_serve.results import ImageDetections, ImageFeatures, ImagePrediction
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.features import Embedding

_STATIC = RoutingTrace(RoutingLayout(), np.zeros((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class _ReadLater:
    """A file that is read when its turn comes."""

    image: LocalImage
    max_bytes: int

    @property
    def name(self) -> str:
        return self.image.name

    def read(self) -> bytes:
        return self.image.read_bytes(self.max_bytes)


def describe(client: Client, model: str | None) -> AnsweringModel:
    """The version that a server answers with.

    Args:
        client: of the server.
        model: `NAME[/VERSION]`; the server's default model if None.

    Raises:
        NoDefaultModel: none was named, and the server has no default one. InvalidParameter: this is no name of one.
            Others as those of `Client`.
    """
    if model is None:
        model = next((summary.name for summary in client.models() if summary.default), None)
    if model is None:
        raise NoDefaultModel(f"The server at {client.url} has no default model. Name one with --model.")
    name, slash, version = model.partition("/")
    if slash and not version:
        raise InvalidParameter(f"{model!r} is no model. Write NAME, NAME/VERSION or NAME/ALIAS.")
    return _answering(client.model(name, version or None))


def classify_remotely(
    client: Client,
    images: Sequence[LocalImage],
    model: AnsweringModel,
    *,
    max_bytes: int,
    threshold: float = 0.0,
    **options: Any,
) -> Iterator[ClassifiedImage]:
    """Classify images, in order; a few are read ahead.

    Args:
        client: of the server.
        images: what to classify.
        model: the version that answers, even if it isn't the newest any more.
        max_bytes: most bytes of an image.
        threshold: classes with a smaller probability are left out here, since the best one is to be known in any case.
        options: those of `Client.predict`.
    """
    answers = client.predict_iter(_later(images, max_bytes), model=model.name, version=model.version, **options)
    for image, answer in zip(images, answers, strict=True):
        yield _classified(image.name, answer, threshold)


def detect_remotely(
    client: Client,
    images: Sequence[LocalImage],
    model: AnsweringModel,
    *,
    max_bytes: int,
    task: Detect,
    routing: bool,
) -> Iterator[ImageResult[Detection]]:
    """Find objects in images, with a task's thresholds; as `classify_remotely`."""
    answers = client.detect_iter(
        _later(images, max_bytes), model=model.name, version=model.version, routing=routing, **asdict(task)
    )
    for image, answer in zip(images, answers, strict=True):
        yield _detected(image.name, answer)


def route_remotely(
    client: Client, images: Sequence[LocalImage], model: AnsweringModel, *, max_bytes: int
) -> Iterator[ImageResult[RoutedAnswer]]:
    """Show which experts images are routed to, with the best class or the objects of each; as `classify_remotely`."""
    if model.task == "detection":
        return detect_remotely(client, images, model, max_bytes=max_bytes, task=Detect(), routing=True)
    return classify_remotely(client, images, model, max_bytes=max_bytes, top_k=1, routing=True)


def embed_remotely(
    client: Client, images: Sequence[LocalImage], model: AnsweringModel, *, max_bytes: int, logits: bool
) -> Iterator[ImageResult[Embedding]]:
    """Compute images' features, and logits if wanted; as `classify_remotely`."""
    answers = client.features_iter(_later(images, max_bytes), model=model.name, version=model.version, logits=logits)
    for image, answer in zip(images, answers, strict=True):
        yield _embedded(image.name, answer)


def _later(images: Sequence[LocalImage], max_bytes: int) -> list[BinaryIO]:
    return [cast(BinaryIO, _ReadLater(image, max_bytes)) for image in images]


def _answering(details: ModelDetails) -> AnsweringModel:
    return AnsweringModel(
        name=details.name,
        version=details.version,
        task=details.task,
        computed_by=TypeAdapter(EngineDescription).validate_python(details.computed_by),
        routing=RoutingLayout(details.routing_blocks, details.routing_experts),
        weights_sha256=str(details.files.get("weights.safetensors", {}).get("sha256", "")),
    )


def _classified(name: str, answer: ImagePrediction, threshold: float) -> ClassifiedImage:
    if not answer.classes or answer.timings is None or answer.batch_size is None:
        return ImageResult(id=name, filename=name, error=answer.error)
    prediction = Prediction(
        best=answer.classes[0],
        classes=tuple(scored for scored in answer.classes if scored.probability >= threshold),
        routing=answer.routing or _STATIC,
        timings=answer.timings,
        batch_size=answer.batch_size,
    )
    return ImageResult(id=name, filename=name, prediction=prediction)


def _detected(name: str, answer: ImageDetections) -> ImageResult[Detection]:
    if answer.width is None or answer.height is None or answer.timings is None or answer.batch_size is None:
        return ImageResult(id=name, filename=name, error=answer.error)
    detection = Detection(
        objects=answer.objects,
        width=answer.width,
        height=answer.height,
        routing=answer.routing or _STATIC,
        timings=answer.timings,
        batch_size=answer.batch_size,
    )
    return ImageResult(id=name, filename=name, prediction=detection)


def _embedded(name: str, answer: ImageFeatures) -> ImageResult[Embedding]:
    if answer.features is None or answer.timings is None or answer.batch_size is None:
        return ImageResult(id=name, filename=name, error=answer.error)
    embedding = Embedding(
        features=answer.features, logits=answer.logits, timings=answer.timings, batch_size=answer.batch_size
    )
    return ImageResult(id=name, filename=name, prediction=embedding)
