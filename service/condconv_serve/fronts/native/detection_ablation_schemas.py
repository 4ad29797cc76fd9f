"""The bodies of `POST /routing/ablation` with a detector."""

from __future__ import annotations

from pydantic import BaseModel, Field

from condconv_serve.fronts.native.ablation_schemas import AblationTimingsBody, ChangeBody
from condconv_serve.fronts.native.detection_schemas import BoxBody, DetectedObjectBody, box_body, object_body
from condconv_serve.fronts.native.schemas import ModelReference, RoutingBody, routing_body
from condconv_serve.tasks.detection_ablation import DetectionVariant, KeptObject, LostObject, NewObject

_PLACE = "Its place in `detections`, from 0."


class KeptObjectBody(BaseModel):
    """An object that is found with this routing, too."""

    detection: int = Field(description=_PLACE)
    score: float = Field(description="Its score now.")
    difference: float = Field(description="How much higher that is than with the original routing.")
    overlap: float = Field(description="Of its box then and now: intersection over union, 0.5 to 1.")
    box: BoxBody = Field(description="Its box now, in pixels.")
    box_normalized: BoxBody


class LostObjectBody(BaseModel):
    """An object that isn't found with this routing."""

    detection: int = Field(description=_PLACE)
    score: float = Field(
        description="What is left of its score: the highest one of its class in a box that overlaps its own by 0.5 or "
        "more; 0 if there is none."
    )
    difference: float = Field(description="How much higher that is than its score with the original routing.")


class NewObjectBody(DetectedObjectBody):
    """An object that is found with this routing only."""

    difference: float = Field(
        description="How much higher its score is than the highest one of its class in a box there with the original "
        "routing."
    )


class DetectionVariantBody(BaseModel):
    """What would have been found. Objects are the same if their class is, and their boxes overlap by at least 0.5."""

    name: str = Field(description="The name that you gave, or one such as `block_8 without expert 2`.")
    changes: list[ChangeBody]
    similarity: float = Field(
        description="1 if all scores are those of the original routing, 0 if nothing is left of them: the sum, over "
        "all objects found with either routing, of the smaller of both scores, over the sum of the larger."
    )
    kept: list[KeptObjectBody] = Field(description="In the order of `detections`.")
    lost: list[LostObjectBody] = Field(description="In the order of `detections`.")
    new: list[NewObjectBody] = Field(description="The highest score first.")
    routing: RoutingBody | None = Field(None, description="The routing weights that were used, in all blocks.")


class DetectionAblationResponse(BaseModel):
    """What a detector would have found with other routings."""

    model: ModelReference
    id: str
    filename: str | None = None
    width: int = Field(description="Of the photo, upright as EXIF says, in pixels.")
    height: int = Field(description="Of the photo, in pixels.")
    detections: list[DetectedObjectBody] = Field(
        description="What is found with the original routing, the highest score first."
    )
    routing: RoutingBody = Field(description="The routing as it is.")
    variants: list[DetectionVariantBody] = Field(
        description="In the order of your variants, or else by block and expert."
    )
    timings_ms: AblationTimingsBody


def detection_variant_body(found: DetectionVariant, *, routing: bool) -> DetectionVariantBody:
    """One variant as a body."""
    return DetectionVariantBody.model_construct(
        name=found.variant.name,
        changes=[ChangeBody.of(change) for change in found.variant.changes],
        similarity=found.similarity,
        kept=[_kept(one) for one in found.kept],
        lost=[_lost(one) for one in found.lost],
        new=[_new(one) for one in found.new],
        routing=routing_body(found.routing) if routing else None,
    )


def _kept(one: KeptObject) -> KeptObjectBody:
    return KeptObjectBody.model_construct(
        detection=one.place,
        score=one.now.score,
        difference=one.difference,
        overlap=one.overlap,
        box=box_body(one.now.box),
        box_normalized=box_body(one.now.box_normalized),
    )


def _lost(one: LostObject) -> LostObjectBody:
    return LostObjectBody.model_construct(detection=one.place, score=one.score, difference=one.difference)


def _new(one: NewObject) -> NewObjectBody:
    return NewObjectBody.model_construct(**dict(object_body(one.now)), difference=one.difference)
