"""A detector's ablation: which objects different routing takes away or adds, and how it changes their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import (
    BOXES,
    ROUTING,
    SCORES,
    DetectedObject,
    ModelInfo,
    Placement,
    RoutingTrace,
    Tensors,
    Variant,
    rows_of,
)
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.boxes import overlaps
from condconv_serve.tasks.detection import Detect, in_photo

SAME_OBJECT = 0.5
"""Boxes of the same class that overlap by so much (intersection over union) show the same object."""
MAX_OBJECTS = 32_768
"""Most objects of all variants together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptObject:
    """An object that is found with the variant's routing, too.

    Attributes:
        place: its place among the objects of the unchanged routing.
        now: what it is now.
        difference: how much higher its score is now.
        overlap: of its box then and now.
    """

    place: int
    now: DetectedObject
    difference: float
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LostObject:
    """An object that isn't found with the variant's routing.

    Attributes:
        place: its place among the objects of the unchanged routing.
        score: the highest score of its class that is left in a box that could show it; 0 if there is none.
        difference: how much higher that is than its score was.
    """

    place: int
    score: float
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObject:
    """An object that is found with the variant's routing only.

    Attributes:
        now: what it is.
        difference: how much higher its score is than the highest one of its class that a box there had before.
    """

    now: DetectedObject
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionVariant:
    """What would have been found.

    Attributes:
        variant: with which routing.
        kept: objects that are still found, in the order of the unchanged ones.
        lost: objects that aren't, in this order.
        new: objects that weren't found before, the highest score first.
        similarity: 1 if all scores are the same, 0 if nothing is left; see `similarity_of`.
        routing: the weights that were used, with what followed from the changes.
    """

    variant: Variant
    kept: tuple[KeptObject, ...]
    lost: tuple[LostObject, ...]
    new: tuple[NewObject, ...]
    similarity: float
    routing: RoutingTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionAblation:
    """The objects and the routing as they are, and what each variant changes."""

    objects: tuple[DetectedObject, ...]
    routing: RoutingTrace
    variants: tuple[DetectionVariant, ...]


def check_size(variants: int, detect: Detect) -> None:
    """Refuse more objects than an answer may hold.

    Raises:
        InvalidParameter: says what would do.
    """
    if variants * detect.max_detections > MAX_OBJECTS:
        raise InvalidParameter(
            f"max_detections may be at most {MAX_OBJECTS // variants} for these {variants} variants, not "
            f"{detect.max_detections}. Or choose some blocks or experts."
        )


def answer(
    model: ModelInfo, variants: Sequence[Variant], output: Tensors, *, detect: Detect, placement: Placement
) -> DetectionAblation:
    """Compare the variants with the unchanged image.

    Objects are matched by their class and by boxes that overlap by at least `SAME_OBJECT`, those with the highest score
    first.

    Args:
        model: whose answers they are.
        variants: `V` of them.
        output: boxes, scores and routing weights of `V + 1` rows: the unchanged image, then the variants.
        detect: which boxes count as objects.
        placement: where the row lies in its photo.
    """
    first, *others = rows_of(output)
    before = _Seen.of(first, model, detect, placement)
    return DetectionAblation(
        objects=before.objects,
        routing=RoutingTrace(model.routing, first[ROUTING]),
        variants=tuple(
            _compared(
                variant, before, _Seen.of(row, model, detect, placement), RoutingTrace(model.routing, row[ROUTING])
            )
            for variant, row in zip(variants, others, strict=True)
        ),
    )


def similarity_of(scores: Sequence[tuple[float, float]]) -> float:
    """How alike scores are before and now: the sum of the smaller ones over the sum of the larger ones; 1 for none."""
    larger = sum(max(pair) for pair in scores)
    return sum(min(pair) for pair in scores) / larger if larger else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """The objects of a row, their boxes `[N, 4]`, and all candidates: boxes `[anchors, 4]`, scores by class."""

    objects: tuple[DetectedObject, ...]
    object_boxes: NDArray[np.float64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, row: Tensors, model: ModelInfo, detect: Detect, placement: Placement) -> _Seen:
        objects = detect.objects(row, model, placement)
        found = [(one.box.ymin, one.box.xmin, one.box.ymax, one.box.xmax) for one in objects]
        return cls(
            objects=objects,
            object_boxes=np.array(found, np.float64).reshape(-1, 4),
            boxes=in_photo(row[BOXES], placement),
            scores=row[SCORES],
        )

    def score_at(self, box: NDArray[np.float64], index: int) -> float:
        """The highest score of a class in any candidate that could show the object in this box."""
        there = overlaps(box, self.boxes) >= SAME_OBJECT
        return float(self.scores[there, index].max(initial=0))


def _compared(variant: Variant, before: _Seen, now: _Seen, routing: RoutingTrace) -> DetectionVariant:
    pairs = _pairs(before, now)
    kept = tuple(
        KeptObject(
            place=place,
            now=now.objects[other],
            difference=now.objects[other].score - before.objects[place].score,
            overlap=overlap,
        )
        for place, (other, overlap) in sorted(pairs.items())
    )
    lost = tuple(
        LostObject(
            place=place,
            score=(left := now.score_at(before.object_boxes[place], one.index)),
            difference=left - one.score,
        )
        for place, one in enumerate(before.objects)
        if place not in pairs
    )
    matched = {other for other, _ in pairs.values()}
    new = tuple(
        NewObject(now=one, difference=one.score - before.score_at(now.object_boxes[other], one.index))
        for other, one in enumerate(now.objects)
        if other not in matched
    )
    found = [(one.now.score, one.difference) for one in kept]
    found += [(one.now.score, one.difference) for one in new]
    found += [(one.score, one.difference) for one in lost]
    return DetectionVariant(
        variant=variant,
        kept=kept,
        lost=lost,
        new=new,
        similarity=similarity_of([(score - difference, score) for score, difference in found]),
        routing=routing,
    )


def _pairs(before: _Seen, now: _Seen) -> dict[int, tuple[int, float]]:
    """By place of an object before: the place of the same one now, and how much their boxes overlap."""
    classes = np.array([one.index for one in before.objects])
    free = np.ones(len(classes), bool)
    pairs: dict[int, tuple[int, float]] = {}
    for other, one in enumerate(now.objects):  # the highest score first
        common = np.where(free & (classes == one.index), overlaps(now.object_boxes[other], before.object_boxes), 0)
        if len(common) and common.max() >= SAME_OBJECT:
            place = int(common.argmax())
            free[place] = False
            pairs[place] = (other, float(common[place]))
    return pairs
