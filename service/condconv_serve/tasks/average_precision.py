"""How good a detector's answers are: COCO's average precision, by faster-coco-eval.

A box is right if it overlaps an object of its class by at least a threshold (intersection over union), and no box with
a higher score has taken that object. AP50 and AP75 are for the thresholds 0.5 and 0.75, and AP is the mean over 0.5,
0.55, ..., 0.95. At most the 100 boxes with the highest scores of each photo count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import Objects

MAX_DETECTIONS = 100
"""Of a photo."""
SCORE_THRESHOLD = 0.01
"""Average precision looks at boxes with low scores, too."""
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AT_50, _AT_75 = 0, 5
_AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a detector found in one photo: boxes `[N, 4]` in pixels, `ymin, xmin, ymax, xmax`, classes and scores."""

    boxes: NDArray[Any]
    classes: NDArray[Any]
    scores: NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrecision:
    """One class. Without objects of it there are no figures.

    Attributes:
        index: of the class.
        objects: how many there are to find.
        found: how many boxes were answered, however low their score.
        ap: average precision over the thresholds; None without objects.
        ap50: at 0.5.
        ap75: at 0.75.
        recall: share of the objects that were found at 0.5.
        curve: precision at 0.5 where the recall is 0, 0.01, ..., 1; 0 where it isn't reached.
    """

    index: int
    objects: int
    found: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    recall: float | None
    curve: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionQuality:
    """Figures of some photos; means are over the classes that have objects.

    Attributes:
        images: how many photos.
        objects: how many objects there are to find.
        ap: average precision over the thresholds.
        ap50: at 0.5.
        ap75: at 0.75.
        recall: share of the objects that were found, over the thresholds.
        by_size: AP of objects below 32 x 32 pixels ("small"), below 96 x 96 ("medium"), and of others ("large"); None
            where there are none.
        classes: all classes, by index.
    """

    images: int
    objects: int
    ap: float
    ap50: float
    ap75: float
    recall: float
    by_size: dict[str, float | None]
    classes: tuple[ClassPrecision, ...]


def quality_of_boxes(
    known: Sequence[Objects], found: Sequence[Found], *, num_classes: int, by_size: bool = True
) -> DetectionQuality:
    """Compare what was found with what there is.

    Args:
        known: the objects of each photo, in pixels.
        found: what was found in each photo.
        num_classes: of the detector.
        by_size: whether to tell small objects from large ones, which takes four times as long.
    """
    areas = _AREAS if by_size else {"all": _AREAS["all"]}
    precision, recall = _accumulate(known, found, num_classes, list(areas.values()))
    counts = np.zeros(num_classes, int)
    answers = np.zeros(num_classes, int)
    for objects, answer in zip(known, found, strict=True):
        counts += np.bincount(objects.classes[~objects.crowd], minlength=num_classes)
        answers += np.bincount(answer.classes, minlength=num_classes)
    everything = precision[..., 0]
    return DetectionQuality(
        images=len(known),
        objects=int(counts.sum()),
        ap=_mean(everything) or 0.0,
        ap50=_mean(everything[_AT_50]) or 0.0,
        ap75=_mean(everything[_AT_75]) or 0.0,
        recall=_mean(recall[..., 0]) or 0.0,
        by_size={name: _mean(precision[..., number]) for number, name in enumerate(areas) if name != "all"},
        classes=tuple(
            ClassPrecision(
                index=index,
                objects=int(counts[index]),
                found=int(answers[index]),
                ap=_mean(everything[:, :, index]),
                ap50=_mean(everything[_AT_50, :, index]),
                ap75=_mean(everything[_AT_75, :, index]),
                recall=_mean(recall[_AT_50, index, 0]),
                curve=tuple(everything[_AT_50, :, index].tolist()) if counts[index] else (),
            )
            for index in range(num_classes)
        ),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean without -1, which stands where there are no objects."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _accumulate(
    known: Sequence[Objects], found: Sequence[Found], num_classes: int, areas: list[tuple[float, float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision `[thresholds, recalls, classes, areas]` and recall `[thresholds, classes, areas]`."""
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": number} for number in range(len(known))]
    categories = [{"id": index, "name": str(index)} for index in range(num_classes)]
    truth = COCO({"images": images, "categories": categories, "annotations": _annotations(known)})
    answers = COCO({"images": images, "categories": categories, "annotations": _answers(found)})
    judge = COCOeval_faster(truth, answers, "bbox")
    judge.params.iouThrs = _THRESHOLDS
    judge.params.areaRng = [list(area) for area in areas]
    judge.params.areaRngLbl = [str(number) for number in range(len(areas))]
    judge.params.maxDets = [MAX_DETECTIONS]
    judge.evaluate()
    judge.accumulate()
    return judge.eval["precision"][..., 0], judge.eval["recall"][..., 0]


def _annotations(known: Sequence[Objects]) -> list[dict[str, Any]]:
    made = [
        {**_box(box), "image_id": number, "category_id": kind, "iscrowd": int(crowd)}
        for number, objects in enumerate(known)
        for box, kind, crowd in zip(
            objects.boxes.tolist(), objects.classes.tolist(), objects.crowd.tolist(), strict=True
        )
    ]
    return _numbered(made)


def _answers(found: Sequence[Found]) -> list[dict[str, Any]]:
    made = [
        {**_box(box), "image_id": number, "category_id": kind, "score": score}
        for number, one in enumerate(found)
        for box, kind, score in zip(one.boxes.tolist(), one.classes.tolist(), one.scores.tolist(), strict=True)
    ]
    return _numbered(made)


def _numbered(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With ids from 1: an object of the id 0 would count as not found."""
    return [{**one, "id": number} for number, one in enumerate(made, 1)]


def _box(box: list[float]) -> dict[str, Any]:
    ymin, xmin, ymax, xmax = box
    return {"bbox": [xmin, ymin, xmax - xmin, ymax - ymin], "area": (xmax - xmin) * (ymax - ymin)}
