"""The bodies of the routes about routing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from condconv_serve.domain import Answered, Detection, ImageResult, ModelInfo, RoutedAnswer
from condconv_serve.fronts.native.detection_schemas import DetectionBody, DetectorParameters, detection_fields
from condconv_serve.fronts.native.problems import Problem
from condconv_serve.fronts.native.schemas import (
    MAX_NAME,
    VERSION,
    ClassParameters,
    ModelReference,
    PredictionBody,
    RoutingBody,
    prediction_fields,
)
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.statistics import Window
from condconv_serve.routing.views import insight_view

RoutingFormat = Literal["json", "csv", "npz", "png", "svg"]


class TracesParameters(ClassParameters, DetectorParameters):
    """Parameters of `POST /routing`. Those of `/predict` are for classifiers, and those of `/detect` for detectors."""

    format: RoutingFormat | None = Field(
        None, description="The form of the answer. If absent, the Accept header chooses; without it, JSON."
    )


class BlockInsightBody(BaseModel):
    """What stands out in one block's routing. A distance is the root mean square of the differences of weights."""

    block: str
    entropy: float = Field(description="0 if one expert has all the weight, 1 if all have the same.")
    strongest: list[int] = Field(description="The experts with the largest weights, largest first; at most three.")
    reference_distance: float | None = Field(None, description="Distance to the mean of the model's reference profile.")
    typical_distance: float | None = Field(
        None, description="That distance for the reference's own images, from the mean of the others: the median."
    )
    unusual_above: float | None = Field(
        None, description="One in twenty of the reference's own images is farther from the others than this."
    )
    class_distance: float | None = Field(
        None, description="Distance to the mean of images with the same predicted class; see `class_profile`."
    )


class ClassProfileBody(BaseModel):
    """Which images the class's mean is made of."""

    index: int
    images: int
    source: Literal["reference", "live"] = Field(description="The model's reference profile, or live traffic.")


class InsightBody(BaseModel):
    """What stands out in one image's routing: in each block, in order, and over all blocks."""

    blocks: list[BlockInsightBody]
    reference_distance: float | None = None
    typical_distance: float | None = None
    unusual_above: float | None = None
    unusual: bool | None = Field(
        None,
        description="Whether `reference_distance` is above `unusual_above`. Absent without a reference profile of at "
        "least 20 images.",
    )
    reference_images: int | None = Field(None, description="How many images the reference profile was made of.")
    class_distance: float | None = None
    class_profile: ClassProfileBody | None = Field(
        None,
        description="Of the predicted class; a detector's is that of the box with the highest score, however low. "
        "Absent if neither the reference profile nor live traffic has enough images of the class.",
    )


class RoutedPredictionBody(PredictionBody):
    """The answer for one image, with its routing and what stands out in it.

    It has either `error` or all other fields.
    """

    insight: InsightBody | None = None


class RoutedDetectionBody(DetectionBody):
    """A detector's answer for one image, with its routing and what stands out in it.

    It has either `error` or all other fields.
    """

    insight: InsightBody | None = None


class RoutedResponse(BaseModel):
    """One entry per image, in order: with classes from a classifier, with detections from a detector."""

    model: ModelReference
    predictions: list[RoutedPredictionBody | RoutedDetectionBody]


class RecentResponse(RoutedResponse):
    """What was answered to a recent request; `at` is when, in seconds since the epoch."""

    request_id: str
    at: float


class ModelParameters(BaseModel):
    """Which version's statistics."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; the default one if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description=VERSION)


class WindowParameters(ModelParameters):
    """Which version's statistics, and since when."""

    window: Window = Field("15m", description="The last minute, the last 15 minutes, or all since start or reset.")


class LiveParameters(WindowParameters):
    """Parameters of `GET /routing`."""

    classes: int = Field(20, ge=0, le=1000, description="How many of the most frequent classes to list.")


class ExpertParameters(WindowParameters):
    """Parameters of the classes of an expert."""

    top: int = Field(10, ge=1, le=1000, description="How many classes to list at each end.")
    min_images: int = Field(1, ge=1, description="Leave out classes with fewer images than this.")


class ResetParameters(BaseModel):
    """Which statistics to reset."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, max_length=MAX_NAME, description="Name of the model; all models if a version is absent, too."
    )
    version: str | None = Field(
        None,
        max_length=MAX_NAME,
        description="Its version, or an alias; all versions if absent. Without a model, one of the default model.",
    )


class Spread(BaseModel):
    """Mean and standard deviation over images."""

    mean: float
    deviation: float


class DriftBody(BaseModel):
    """How far a block has moved from the reference profile: the mean over its experts."""

    psi: float = Field(description="Population stability index of the weights' distributions.")
    js: float = Field(description="Jensen-Shannon divergence in bits, 0 to 1.")
    psi_by_chance: float = Field(description="The psi that chance alone gives with this number of images.")
    alert_above: float = Field(description="A psi above this is an alert. It is higher while there are few images.")
    alert: bool


class ExpertBody(Spread):
    """How one expert is used."""

    expert: int
    load: float = Field(description="Share of images whose strongest expert this is; sums to 1 over the block.")
    active: float = Field(description="Share of images that give it a weight above 0.5.")
    histogram: list[int] = Field(description="Images by weight; bins as in `histogram_edges`.")


class BlockBody(BaseModel):
    """How one block's experts are used."""

    block: str
    entropy: Spread
    experts: list[ExpertBody]
    drift: DriftBody | None = Field(None, description="Absent without images, or without a reference profile.")


class CountedClass(BaseModel):
    """A predicted class and its images."""

    index: int
    label: str
    synset: str | None = None
    images: int


class ReferenceBlockBody(BaseModel):
    """One block of the reference profile, by expert."""

    block: str
    entropy: float
    mean: list[float]
    deviation: list[float]
    load: list[float]


class ReferenceBody(BaseModel):
    """The model's reference profile."""

    images: int
    blocks: list[ReferenceBlockBody]


class LiveClassesBody(BaseModel):
    """The predicted classes of a window. With a detector an image counts for each class found in it, or for none."""

    known: int = Field(description="How many classes have statistics of their own.")
    dropped_images: int = Field(
        description="Images of classes that were dropped, since more frequent classes filled the memory."
    )
    most_frequent: list[CountedClass]


class LiveResponse(BaseModel):
    """What live traffic does."""

    model: ModelReference
    window: Window
    seconds: float = Field(description="How far the window reaches back now.")
    images: int
    histogram_edges: list[float]
    blocks: list[BlockBody]
    drift_alert: bool | None = Field(None, description="Whether any block drifts; absent if that can't be said.")
    classes: LiveClassesBody
    reference: ReferenceBody | None = Field(None, description="Absent if the bundle carries no reference profile.")


class ClassRoutingBody(BaseModel):
    """Mean routing weights of the images of one class."""

    images: int
    routing: RoutingBody


class ClassResponse(BaseModel):
    """How one predicted class is routed."""

    model: ModelReference
    window: Window
    index: int
    label: str
    synset: str | None = None
    images: int = Field(
        description="Images in the window with this predicted class; with a detector, those in which it was found."
    )
    routing: RoutingBody | None = Field(None, description="Their mean routing weights; absent without images.")
    all_classes: ClassRoutingBody | None = Field(None, description="The same over all images of the window.")
    reference: ClassRoutingBody | None = Field(None, description="The class in the model's reference profile.")


class UsedClass(CountedClass):
    """A predicted class, and the mean weight that its images give an expert."""

    mean: float


class ExpertResponse(BaseModel):
    """Which predicted classes use an expert."""

    model: ModelReference
    window: Window
    block: str
    expert: int
    images: int
    usage: ExpertBody
    most: list[UsedClass] = Field(description="The classes with the largest mean weights, largest first.")
    least: list[UsedClass] = Field(description="Those with the smallest, smallest first.")


class ResetResponse(BaseModel):
    """Whose statistics were reset."""

    reset: list[ModelReference]


def routed_response(answered: Answered[RoutedAnswer], *, live: ClassMeans) -> RoutedResponse:
    """Put an answer into the body's shape, with what stands out in its routing."""
    model = answered.model
    return RoutedResponse.model_construct(
        model=ModelReference(name=model.name, version=model.version),
        predictions=[_routed(result, model, live) for result in answered.results],
    )


def recent_response(recent: RecentRequest, model: ModelInfo | None, *, live: ClassMeans) -> RecentResponse:
    """Put a recent request into the body's shape; `model` is None if it is no longer served."""
    return RecentResponse.model_construct(
        request_id=recent.request_id,
        at=recent.at,
        model=ModelReference(name=recent.model, version=recent.version),
        predictions=[_routed(result, model, live) for result in recent.results],
    )


def _routed(
    result: ImageResult[RoutedAnswer], model: ModelInfo | None, live: ClassMeans
) -> RoutedPredictionBody | RoutedDetectionBody:
    named: dict[str, Any] = {"id": result.id, "filename": result.filename}
    answer = result.prediction
    if answer is None:
        assert result.error is not None  # exactly one of the two is set
        return RoutedPredictionBody(**named, error=Problem.of(result.error))
    insight = InsightBody.model_validate(insight_view(answer, model, live=live))
    if isinstance(answer, Detection):
        return RoutedDetectionBody.model_construct(**named, **detection_fields(answer, routing=True), insight=insight)
    return RoutedPredictionBody(**named, **prediction_fields(answer, routing=True), insight=insight)
