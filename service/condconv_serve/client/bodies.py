"""The bodies of a server's answers, as far as the client reads them; unknown fields are passed over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, Field

from condconv_serve.domain import Box, ClassScore, DetectedObject, Timings
from condconv_serve.results import ModelVersion


class ProblemBody(BaseModel):
    """An error, as RFC 9457 problem details."""

    detail: str
    slug: str | None = None
    status: int | None = None
    retry_after: float | None = Field(None, ge=0)


class HealthBody(BaseModel):
    """What probes say if all is well."""

    status: Literal["ok"]


class ClassBody(BaseModel):
    """One class."""

    index: int
    label: str
    probability: float
    synset: str | None = None

    def score(self) -> ClassScore:
        """As results have it."""
        return ClassScore(self.index, self.label, self.synset, self.probability)


class TimingsBody(BaseModel):
    """Times in milliseconds."""

    decode: float
    queue: float
    inference: float
    total: float

    def seconds(self) -> Timings:
        """As results have them."""
        return Timings(**{name: value / 1e3 for name, value in self})


RoutingBody = dict[str, list[float]]


class ImageBody(BaseModel):
    """What every answer for one image has: `error`, or the rest."""

    id: str
    filename: str | None = None
    timings_ms: TimingsBody | None = None
    batch_size: int | None = None
    cached: bool | None = None
    error: ProblemBody | None = None


class PredictionBody(ImageBody):
    """The answer for one image of `/predict` or `/routing`."""

    classes: list[ClassBody] = []
    routing: RoutingBody | None = None
    insight: dict[str, Any] | None = None


class ObjectBody(BaseModel):
    """One object in a photo."""

    index: int
    label: str
    score: float
    box: Box
    box_normalized: Box
    synset: str | None = None

    def found(self) -> DetectedObject:
        """As results have it."""
        return DetectedObject(
            index=self.index,
            label=self.label,
            synset=self.synset,
            score=self.score,
            box=self.box,
            box_normalized=self.box_normalized,
        )


class DetectionBody(ImageBody):
    """The answer for one image of `/detect`."""

    width: int | None = None
    height: int | None = None
    detections: list[ObjectBody] = []
    routing: RoutingBody | None = None


class RoutedDetectionBody(DetectionBody):
    """The answer for one image of `/routing`, by a detector."""

    insight: dict[str, Any] | None = None


class FeaturesBody(ImageBody):
    """The answer for one image of `/features`."""

    features: list[float] | None = None
    logits: list[float] | None = None


class PredictionsBody(BaseModel):
    """The answer for all images of a request."""

    model: ModelVersion
    predictions: list[PredictionBody]


class RoutedBody(BaseModel):
    """The answer of `/routing` for all images of a request."""

    model: ModelVersion
    predictions: list[PredictionBody | RoutedDetectionBody]


class RecentBody(RoutedBody):
    """What was answered to a recent request."""

    request_id: str


class DetectionsBody(BaseModel):
    """The answer of `/detect` for all images of a request."""

    model: ModelVersion
    predictions: list[DetectionBody]


class EmbeddingsBody(BaseModel):
    """The answer of `/features` for all images of a request."""

    model: ModelVersion
    predictions: list[FeaturesBody]


class ChangeBody(BaseModel):
    """A change to one block's routing."""

    block: str
    off: tuple[int, ...] | None = None
    uniform: bool = False
    weights: tuple[float | None, ...] | None = None


class VariantBody(BaseModel):
    """What an answer would have been."""

    name: str
    changes: list[ChangeBody]
    probability: float
    difference: float
    top: ClassBody
    same_top: bool
    routing: RoutingBody | None = None


class AblationBody(BaseModel):
    """What an answer would have been with other routings."""

    model: ModelVersion
    top: ClassBody
    routing: RoutingBody
    variants: list[VariantBody]
    timings_ms: TimingsBody


class KeptObjectBody(BaseModel):
    """An object that is found with another routing, too."""

    detection: int = Field(ge=0)
    score: float
    difference: float
    overlap: float
    box: Box
    box_normalized: Box

    def now(self, before: DetectedObject) -> DetectedObject:
        """What the object has become."""
        return replace(before, score=self.score, box=self.box, box_normalized=self.box_normalized)


class LostObjectBody(BaseModel):
    """An object that isn't found with another routing."""

    detection: int = Field(ge=0)
    score: float
    difference: float


class NewObjectBody(ObjectBody):
    """An object that is found with another routing only."""

    difference: float


class DetectionVariantBody(BaseModel):
    """What a detector would have found."""

    name: str
    changes: list[ChangeBody]
    similarity: float
    kept: list[KeptObjectBody]
    lost: list[LostObjectBody]
    new: list[NewObjectBody]
    routing: RoutingBody | None = None


class DetectionAblationBody(BaseModel):
    """What a detector would have found with other routings."""

    model: ModelVersion
    width: int
    height: int
    detections: list[ObjectBody]
    routing: RoutingBody
    variants: list[DetectionVariantBody]
    timings_ms: TimingsBody
