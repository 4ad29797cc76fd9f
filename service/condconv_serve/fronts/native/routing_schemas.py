"""The bodies of the routes about routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from condconv_serve.domain import ImageResult, Prediction, RoutingProfile, ServedModel
from condconv_serve.fronts.native.schemas import (
    MAX_NAME,
    ModelReference,
    PredictionBody,
    RoutingBody,
    RoutingParameters,
    prediction_body,
)
from condconv_serve.routing.drift import BlockDrift
from condconv_serve.routing.insight import class_profile_of, insight
from condconv_serve.routing.live import LiveModel, LiveRouting
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.routing.statistics import Window
from condconv_serve.routing.tally import EDGES, Floats, Tally
from condconv_serve.tasks.classification import Classification

RoutingFormat = Literal["json", "csv", "npz", "png", "svg"]


class TracesParameters(RoutingParameters):
    """Parameters of `POST /routing`."""

    format: RoutingFormat | None = Field(
        None, description="What to answer with; as the Accept header says if absent, and JSON if that says nothing."
    )


class BlockInsightBody(BaseModel):
    """What stands out in one block's routing. Distances are root mean squares of differences of weights."""

    block: str
    entropy: float = Field(description="0 if one expert has all the weight, 1 if all have the same.")
    strongest: list[int] = Field(description="The experts with the largest weights, largest first; at most three.")
    reference_distance: float | None = Field(None, description="To the mean of the model's reference profile.")
    typical_distance: float | None = Field(None, description="What that is for the reference's own images.")
    class_distance: float | None = Field(None, description="To the mean of images taken for the same class.")


class ClassProfileBody(BaseModel):
    """Which images the distances to the class are to."""

    index: int
    images: int
    source: Literal["reference", "live"] = Field(description="The model's reference profile, or live traffic.")


class InsightBody(BaseModel):
    """What stands out in one image's routing: by block in order, and over all blocks."""

    blocks: list[BlockInsightBody]
    reference_distance: float | None = None
    typical_distance: float | None = None
    class_distance: float | None = None
    class_profile: ClassProfileBody | None = Field(
        None, description="Absent if neither the reference profile nor live traffic knows enough of the class."
    )


class RoutedPredictionBody(PredictionBody):
    """The answer for one image, with its routing and what stands out in it: `error`, or all the rest."""

    insight: InsightBody | None = None


class RoutedResponse(BaseModel):
    """One entry per image, in order."""

    model: ModelReference
    predictions: list[RoutedPredictionBody]


class RecentResponse(RoutedResponse):
    """What was answered to a recent request; `at` is when, in seconds since the epoch."""

    request_id: str
    at: float


class WindowParameters(BaseModel):
    """Which live statistics."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; the default one if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description="Its version; the newest if absent.")
    window: Window = Field("15m", description="The last minute, the last 15 minutes, or all since start or reset.")


class LiveParameters(WindowParameters):
    """Parameters of `GET /routing`."""

    classes: int = Field(20, ge=0, le=1000, description="How many of the most frequent classes to list.")


class ExpertParameters(WindowParameters):
    """Parameters of the classes of an expert."""

    top: int = Field(10, ge=1, le=1000, description="How many classes to list at each end.")
    min_images: int = Field(1, ge=1, description="Leave out classes with fewer images.")


class VersionParameters(BaseModel):
    """Which model's statistics."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=MAX_NAME, description="Name of the model; all models if absent.")
    version: str | None = Field(None, max_length=MAX_NAME, description="Its version; all of them if absent.")


class Spread(BaseModel):
    """Mean and standard deviation over images."""

    mean: float
    deviation: float


class DriftBody(BaseModel):
    """How far a block has moved from the reference profile: the mean over its experts."""

    psi: float = Field(description="Population stability index of the weights' distributions.")
    js: float = Field(description="Jensen-Shannon divergence in bits, 0 to 1.")
    psi_by_chance: float = Field(description="What psi would be without drift, for so few images.")
    alert_above: float = Field(description="The psi from which it is an alert; higher while there are few images.")
    alert: bool


class ExpertBody(Spread):
    """How one expert is used."""

    expert: int
    load: float = Field(description="Share of images whose strongest expert this is; sums to 1 over the block.")
    active: float = Field(description="Share of images that give it a weight above 0.5.")
    histogram: list[int] = Field(description="Images by weight, in the bins between `histogram_edges`.")


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
    """The predicted classes of a window."""

    known: int = Field(description="How many classes have statistics of their own.")
    dropped_images: int = Field(description="Images missing there, since memory was full of more frequent classes.")
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
    images: int = Field(description="Images in the window that were taken for it.")
    routing: RoutingBody | None = Field(None, description="Their mean routing weights; absent without images.")
    all_classes: ClassRoutingBody | None = Field(None, description="The same over all images of the window.")
    reference: ClassRoutingBody | None = Field(None, description="The class in the model's reference profile.")


class UsedClass(CountedClass):
    """A predicted class, and the mean weight that its images give an expert."""

    mean: float


class ExpertResponse(BaseModel):
    """Which classes use an expert."""

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


def routed_response(classification: Classification, *, live: LiveRouting | None) -> RoutedResponse:
    """Put a classification into the body's shape, with what stands out in its routing."""
    return RoutedResponse(
        model=ModelReference(name=classification.model.name, version=classification.model.version),
        predictions=[_routed(result, classification.model, live) for result in classification.results],
    )


def recent_response(recent: RecentRequest, model: ServedModel | None, *, live: LiveRouting | None) -> RecentResponse:
    """Put a recent request into the body's shape; `model` is None if it is no longer served."""
    return RecentResponse(
        request_id=recent.request_id,
        at=recent.at,
        model=ModelReference(name=recent.model, version=recent.version),
        predictions=[_routed(result, model, live) for result in recent.results],
    )


def _routed(result: ImageResult, model: ServedModel | None, live: LiveRouting | None) -> RoutedPredictionBody:
    body = prediction_body(result, routing=True)
    prediction = result.prediction
    return RoutedPredictionBody(
        **dict(body), insight=None if prediction is None else _insight_body(prediction, model, live)
    )


def _insight_body(prediction: Prediction, model: ServedModel | None, live: LiveRouting | None) -> InsightBody:
    blocks = prediction.routing.blocks
    known = None
    if model is not None and live is not None:
        known = live.class_profile(model, prediction.classes[0].index)
    elif model is not None:
        known = class_profile_of(prediction.classes[0].index, profile=model.routing_profile, live=None)
    found = insight(prediction.routing, profile=None if model is None else model.routing_profile, class_profile=known)

    def distances(place: int) -> dict[str, float | None]:
        return {
            name: None if (values := getattr(found, name)) is None else float(values[place])
            for name in ("reference_distance", "typical_distance", "class_distance")
        }

    return InsightBody(
        blocks=[
            BlockInsightBody(
                block=block,
                entropy=float(found.entropy[number]),
                strongest=list(found.strongest[number]),
                **distances(number),
            )
            for number, block in enumerate(blocks)
        ],
        **distances(-1),
        class_profile=None
        if known is None
        else ClassProfileBody(index=known.index, images=known.images, source=known.source),
    )


def live_response(model: ServedModel, live: LiveModel, *, window: Window, classes: int) -> LiveResponse:
    """Put a window of live statistics into the body's shape."""
    tally = live.statistics.read(window)
    drift = live.drift(tally)
    found, counts = tally.classes.counts()
    frequent = np.argsort(-counts, kind="stable")[:classes]
    return LiveResponse(
        model=ModelReference(name=model.name, version=model.version),
        window=window,
        seconds=round(live.statistics.seconds(window), 3),
        images=tally.count,
        histogram_edges=list(EDGES),
        blocks=[
            BlockBody(
                block=block,
                entropy=Spread(mean=tally.entropy_mean[number], deviation=tally.entropy_deviation[number]),
                experts=[expert_body(tally, number, expert) for expert in range(live.experts[number])],
                drift=_drift_body(drift[number]) if drift else None,
            )
            for number, block in enumerate(live.blocks)
        ],
        drift_alert=any(block.alert for block in drift) if drift else None,
        classes=LiveClassesBody(
            known=len(found),
            dropped_images=tally.classes.dropped_images,
            most_frequent=[
                CountedClass(**_label(model, int(found[place])), images=int(counts[place]))
                for place in frequent.tolist()
            ],
        ),
        reference=None if model.routing_profile is None else _reference_body(live, model.routing_profile),
    )


def class_response(model: ServedModel, live: LiveModel, index: int, *, window: Window) -> ClassResponse:
    """Put what is known of a class into the body's shape."""
    tally = live.statistics.read(window)
    found = tally.classes.get(index)
    profile = class_profile_of(index, profile=model.routing_profile, live=None)
    return ClassResponse(
        model=ModelReference(name=model.name, version=model.version),
        window=window,
        **_label(model, index),
        images=0 if found is None else found[0],
        routing=None if found is None else _weights(live, found[1]),
        all_classes=ClassRoutingBody(images=tally.count, routing=_weights(live, tally.mean)) if tally.count else None,
        reference=None
        if profile is None
        else ClassRoutingBody(images=profile.images, routing=_weights(live, profile.mean)),
    )


def expert_response(
    model: ServedModel, live: LiveModel, block: int, expert: int, *, window: Window, top: int, min_images: int
) -> ExpertResponse:
    """Put which classes use an expert into the body's shape."""
    tally = live.statistics.read(window)
    classes, counts = tally.classes.counts()
    means = tally.classes.means(block, expert)
    enough = np.flatnonzero(counts >= min_images)
    order = enough[np.argsort(-means[enough], kind="stable")]

    def used(places: Sequence[int]) -> list[UsedClass]:
        return [
            UsedClass(**_label(model, int(classes[p])), images=int(counts[p]), mean=float(means[p])) for p in places
        ]

    return ExpertResponse(
        model=ModelReference(name=model.name, version=model.version),
        window=window,
        block=live.blocks[block],
        images=tally.count,
        expert=expert,
        usage=expert_body(tally, block, expert),
        most=used(order[:top].tolist()),
        least=used(order[::-1][:top].tolist()),
    )


def expert_body(tally: Tally, block: int, expert: int) -> ExpertBody:
    """How one expert is used."""
    return ExpertBody(
        expert=expert,
        mean=tally.mean[block, expert],
        deviation=tally.deviation[block, expert],
        load=tally.load[block, expert],
        active=tally.active_share[block, expert],
        histogram=tally.histogram[block, expert].tolist(),
    )


def _drift_body(drift: BlockDrift) -> DriftBody:
    return DriftBody(**asdict(drift), alert=drift.alert)


def _reference_body(live: LiveModel, profile: RoutingProfile) -> ReferenceBody:
    return ReferenceBody(
        images=profile.images,
        blocks=[
            ReferenceBlockBody(
                block=block,
                entropy=profile.entropy[number],
                mean=profile.mean[number, :experts].tolist(),
                deviation=profile.deviation[number, :experts].tolist(),
                load=profile.load[number, :experts].tolist(),
            )
            for number, (block, experts) in enumerate(zip(live.blocks, live.experts, strict=True))
        ],
    )


def _label(model: ServedModel, index: int) -> dict[str, Any]:
    """The class's names; a class that the model doesn't have can't be predicted by it."""
    label = model.labels[index]
    return {"index": index, "label": label.label, "synset": label.synset}


def _weights(live: LiveModel, weights: Floats) -> RoutingBody:
    named = zip(live.blocks, live.experts, weights.tolist(), strict=True)
    return {block: values[:experts] for block, experts, values in named}
