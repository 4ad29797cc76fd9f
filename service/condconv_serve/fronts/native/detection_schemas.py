"""The bodies of `POST /detect`, and of what else tells objects in photos."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from condconv_serve.domain import Answered, Box, DetectedObject, Detection, ImageResult
from condconv_serve.fronts.native.problems import Problem
from condconv_serve.fronts.native.schemas import (
    CACHED,
    ImageParameters,
    ModelReference,
    RoutingBody,
    Share,
    TimingsBody,
    Whole,
    routing_body,
    timings_body,
)
from condconv_serve.tasks.detection import (
    DEFAULT_IOU_THRESHOLD,
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_SCORE_THRESHOLD,
    MAX_DETECTIONS,
)

_SCORE_THRESHOLD = "Only boxes with a higher score are returned."
_IOU_THRESHOLD = (
    "If two boxes of the same class overlap by more than this (intersection over union), only the one with the higher "
    "score is returned."
)
_MAX_DETECTIONS = "How many objects to return at most, those with the highest scores."


class DetectParameters(ImageParameters):
    """Parameters of `POST /detect`."""

    score_threshold: Share = Field(DEFAULT_SCORE_THRESHOLD, description=_SCORE_THRESHOLD)
    iou_threshold: Share = Field(DEFAULT_IOU_THRESHOLD, description=_IOU_THRESHOLD)
    max_detections: Whole = Field(DEFAULT_MAX_DETECTIONS, ge=1, le=MAX_DETECTIONS, description=_MAX_DETECTIONS)
    routing: bool = Field(False, description="Whether to return each image's routing weights.")


class DetectorParameters(BaseModel):
    """The same parameters of routes whose model may be a detector; for other models they must be absent."""

    score_threshold: Share | None = Field(
        None, description=f"For detectors, {DEFAULT_SCORE_THRESHOLD} if absent. {_SCORE_THRESHOLD}"
    )
    iou_threshold: Share | None = Field(
        None, description=f"For detectors, {DEFAULT_IOU_THRESHOLD} if absent. {_IOU_THRESHOLD}"
    )
    max_detections: Whole | None = Field(
        None,
        ge=1,
        le=MAX_DETECTIONS,
        description=f"For detectors, {DEFAULT_MAX_DETECTIONS} if absent. {_MAX_DETECTIONS}",
    )


class BoxBody(BaseModel):
    """A box: x from the photo's left edge to the right, y from its upper edge down."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class DetectedObjectBody(BaseModel):
    """One object in a photo."""

    index: int = Field(description="Of its class.")
    label: str
    synset: str | None = Field(None, description="WordNet id, where the class has one.")
    score: float = Field(description="Probability of the class, 0 to 1.")
    box: BoxBody = Field(description="In pixels of the photo, upright as EXIF says, and within it.")
    box_normalized: BoxBody = Field(description="The same, as shares of the photo's width and height.")


class DetectionBody(BaseModel):
    """The answer for one image. It has either `error` or all other fields."""

    id: str
    filename: str | None = None
    width: int | None = Field(None, description="Of the photo, upright as EXIF says, in pixels.")
    height: int | None = Field(None, description="Of the photo, in pixels.")
    detections: list[DetectedObjectBody] | None = Field(
        None, description="The objects, the highest score first; empty if none was found."
    )
    routing: RoutingBody | None = Field(
        None, description="Routing weights, 0 to 1, of every expert by CondConv block; `{}` for a static network."
    )
    timings_ms: TimingsBody | None = None
    batch_size: int | None = Field(None, description="Rows in the batch that the image was in.")
    cached: bool | None = Field(None, description=CACHED)
    error: Problem | None = None


class DetectResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[DetectionBody]


def detect_response(answered: Answered[Detection], *, routing: bool) -> DetectResponse:
    """Put detections into the body's shape."""
    return DetectResponse.model_construct(
        model=ModelReference(name=answered.model.name, version=answered.model.version),
        predictions=[detection_body(result, routing=routing) for result in answered.results],
    )


def detection_body(result: ImageResult[Detection], *, routing: bool) -> DetectionBody:
    """The result of one image."""
    if result.error is not None:
        return DetectionBody(id=result.id, filename=result.filename, error=Problem.of(result.error))
    assert result.prediction is not None  # exactly one of the two is set
    # Checking so many numbers would take longer than writing them.
    return DetectionBody.model_construct(
        id=result.id, filename=result.filename, **detection_fields(result.prediction, routing=routing)
    )


def detection_fields(detection: Detection, *, routing: bool) -> dict[str, Any]:
    """An answer's fields of a `DetectionBody`."""
    return {
        "width": detection.width,
        "height": detection.height,
        "detections": [object_body(found) for found in detection.objects],
        "routing": routing_body(detection.routing) if routing else None,
        "timings_ms": timings_body(detection.timings),
        "batch_size": detection.batch_size,
        "cached": detection.timings.cached,
    }


def object_body(found: DetectedObject) -> DetectedObjectBody:
    """One object as a body."""
    return DetectedObjectBody.model_construct(
        index=found.index,
        label=found.label,
        synset=found.synset,
        score=found.score,
        box=box_body(found.box),
        box_normalized=box_body(found.box_normalized),
    )


def box_body(box: Box) -> BoxBody:
    """A box as a body."""
    return BoxBody.model_construct(xmin=box.xmin, ymin=box.ymin, xmax=box.xmax, ymax=box.ymax)
