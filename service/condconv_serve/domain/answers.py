"""Answers: what a task says about one image, and the results of a whole request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from condconv_serve.domain.model import ModelInfo
from condconv_serve.domain.routing import RoutingTrace
from condconv_serve.domain.tensors import Timings
from condconv_serve.errors import ServiceError

Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of an answer; `probability` is the softmax over all classes."""

    index: int
    label: str
    synset: str | None
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Classification's answer for one image.

    Attributes:
        best: the most probable class.
        classes: those that were asked for, best first; empty if `best` doesn't reach the threshold.
        routing: the routing weights.
        timings: where the time went.
        batch_size: rows in its batch.
    """

    best: ClassScore
    classes: tuple[ClassScore, ...]
    routing: RoutingTrace
    timings: Timings
    batch_size: int


@dataclass(frozen=True, slots=True)
class Box:
    """A box with edges parallel to the photo's: x from its left edge to the right, y from its upper edge down."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedObject:
    """One object that was found in a photo.

    Attributes:
        index: of its class.
        label: of its class.
        synset: of its class, if it has one.
        score: the probability of its class, 0 to 1.
        box: in pixels of the upright photo, and within it.
        box_normalized: the same, as shares of the photo's width and height.
    """

    index: int
    label: str
    synset: str | None
    score: float
    box: Box
    box_normalized: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """Detection's answer for one image.

    Attributes:
        objects: what was found, the highest score first; empty if nothing was.
        width: of the upright photo, in pixels.
        height: of the upright photo, in pixels.
        routing: the routing weights.
        timings: where the time went.
        batch_size: rows in its batch.
        best: the class of the box with the highest score, whether that reaches the threshold or not; None if only the
            objects are known.
    """

    objects: tuple[DetectedObject, ...]
    width: int
    height: int
    routing: RoutingTrace
    timings: Timings
    batch_size: int
    best: ClassScore | None = None


RoutedAnswer = Prediction | Detection
"""An answer that has routing weights."""


# Generic and frozen, hence without slots: with them Python 3.11 could not call an alias such as `ClassifiedImage`.
@dataclass(frozen=True, kw_only=True)
class ImageResult(Generic[Answer_co]):
    """The result of one image: either `prediction`, its task's answer, or `error` is set."""

    id: str
    filename: str | None
    prediction: Answer_co | None = None
    error: ServiceError | None = None


@dataclass(frozen=True)
class Answered(Generic[Answer_co]):
    """The answer to one request: one result per image, in order."""

    model: ModelInfo
    results: tuple[ImageResult[Answer_co], ...]


ClassifiedImage = ImageResult[Prediction]
Classification = Answered[Prediction]
