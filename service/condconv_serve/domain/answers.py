"""Answers: what a task says about one image, and the results of a whole request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from condconv_serve.domain.model import ModelInfo
from condconv_serve.domain.routing import RoutingTrace
from condconv_serve.domain.tensors import Timings
from condconv_serve.errors import ServiceError

Answer = TypeVar("Answer")


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


# Generic and frozen, hence without slots: with them Python 3.11 could not call an alias such as `ClassifiedImage`.
@dataclass(frozen=True, kw_only=True)
class ImageResult(Generic[Answer]):
    """The result of one image: either `prediction`, its task's answer, or `error` is set."""

    id: str
    filename: str | None
    prediction: Answer | None = None
    error: ServiceError | None = None


@dataclass(frozen=True)
class Answered(Generic[Answer]):
    """The answer to one request: one result per image, in order."""

    model: ModelInfo
    results: tuple[ImageResult[Answer], ...]


ClassifiedImage = ImageResult[Prediction]
Classification = Answered[Prediction]
