"""Detection: candidate boxes and their scores become the objects in a photo."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import (
    BOXES,
    ROUTING,
    SCORES,
    Box,
    ClassScore,
    DetectedObject,
    Detection,
    ModelInfo,
    Placement,
    RoutingTrace,
    RowAnswer,
    Tensors,
)
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.numbers import check_count, check_share
from condconv_serve.tasks.suppression import chosen

DEFAULT_SCORE_THRESHOLD = 0.5
DEFAULT_IOU_THRESHOLD = 0.5
DEFAULT_MAX_DETECTIONS = 100
MAX_DETECTIONS = 1000
"""Most objects that may be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """The task of detection.

    Attributes:
        score_threshold: only boxes with a higher score are returned.
        iou_threshold: of two boxes of the same class that overlap by more (intersection over union), the one with the
            lower score is left out.
        max_detections: how many objects to return at most, those with the highest scores.
    """

    score_threshold: float = DEFAULT_SCORE_THRESHOLD
    iou_threshold: float = DEFAULT_IOU_THRESHOLD
    max_detections: int = DEFAULT_MAX_DETECTIONS

    def check(self, model: ModelInfo) -> None:
        """Refuse a model that doesn't detect, and impossible thresholds.

        Raises:
            InvalidParameter: says what is allowed.
        """
        if model.task != "detection":
            raise InvalidParameter(f"{model.name} is a model for {model.task}: it finds no boxes.")
        for name in ("score_threshold", "iou_threshold"):
            check_share(name, getattr(self, name))
        check_count("max_detections", self.max_detections, most=MAX_DETECTIONS)

    def answer(self, row: RowAnswer, model: ModelInfo) -> Detection:
        """The objects, the routing, and where the time went."""
        placement = row.placement or whole_row(model)
        return Detection(
            objects=self.objects(row.tensors, model, placement),
            width=placement.photo_width,
            height=placement.photo_height,
            routing=RoutingTrace(model.routing, row.tensors[ROUTING]),
            timings=row.timings,
            batch_size=row.batch_size,
            best=strongest(row.tensors[SCORES], model),
        )

    def scores_in(self, answer: Detection) -> list[float]:
        """The score of each object of an answer."""
        return [found.score for found in answer.objects]

    def objects(self, tensors: Tensors, model: ModelInfo, placement: Placement) -> tuple[DetectedObject, ...]:
        """The objects of one row, the highest score first; those outside of the photo are left out.

        Args:
            tensors: `boxes` and `scores` of the row.
            model: names the classes.
            placement: where the row lies in its photo.
        """
        boxes, classes, scores = self.select(tensors[BOXES], tensors[SCORES])
        found = []
        for box, index, score in zip(in_photo(boxes, placement), classes.tolist(), scores.tolist(), strict=True):
            ymin, xmin, ymax, xmax = box.tolist()
            if ymax <= ymin or xmax <= xmin:
                continue
            label, width, height = model.labels[index], placement.photo_width, placement.photo_height
            found.append(
                DetectedObject(
                    index=index,
                    label=label.label,
                    synset=label.synset,
                    score=score,
                    box=Box(xmin, ymin, xmax, ymax),
                    box_normalized=Box(xmin / width, ymin / height, xmax / width, ymax / height),
                )
            )
        return tuple(found)

    def select(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]:
        """The boxes of one row that remain, the highest score first; ties by class, then by anchor.

        Args:
            boxes: `[anchors, 4]`.
            scores: `[anchors, classes]`.

        Returns:
            Boxes `[N, 4]`, their classes `[N]`, their scores `[N]`; N is at most `max_detections`.
        """
        above = scores > self.score_threshold
        found = heapq.merge(
            *(
                self._of_class(index, np.flatnonzero(above[:, index]), boxes, scores)
                for index in np.flatnonzero(above.any(axis=0)).tolist()
            ),
            key=lambda one: -one[0],
        )
        best = list(islice(found, self.max_detections))
        kind, anchor = (np.array([one[place] for one in best], np.intp) for place in (1, 2))
        return boxes[anchor], kind, scores[anchor, kind]

    def _of_class(
        self, index: int, candidates: NDArray[np.intp], boxes: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> Iterator[tuple[float, int, int]]:
        """Score, class and anchor of the boxes of one class, the highest score first, found one by one."""
        own = scores[candidates, index]
        for place in chosen(boxes[candidates], own, iou_threshold=self.iou_threshold):
            yield float(own[place]), index, int(candidates[place])


def strongest(scores: NDArray[np.float32], model: ModelInfo) -> ClassScore:
    """The class of the highest score `[anchors, classes]` of a row, by which its routing is compared."""
    anchor, index = divmod(int(scores.argmax()), scores.shape[1])
    label = model.labels[index]
    return ClassScore(index, label.label, label.synset, float(scores[anchor, index]))


def in_photo(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float64]:
    """Boxes of a row in pixels of its photo, cut at the photo's edges; those outside have no area.

    Args:
        boxes: `[N, 4]`, `ymin, xmin, ymax, xmax`; 0 to 1 is the row.
        placement: where the row lies.

    Returns:
        float64 `[N, 4]`, in the same order.
    """
    size = np.array([placement.height, placement.width] * 2)
    corner = np.array([placement.top, placement.left] * 2)
    photo = np.array([placement.photo_height, placement.photo_width] * 2)
    found: NDArray[np.float64] = np.clip(boxes * size + corner, 0, photo)
    return found


def whole_row(model: ModelInfo) -> Placement:
    """The placement of a row that came as pixels: it is the photo."""
    size = model.preprocessing.image_size
    return Placement(photo_width=size, photo_height=size, left=0, top=0, width=size, height=size)
