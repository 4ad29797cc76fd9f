"""How good a classifier's answers are: hits, precision and recall by class, confusions, and calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import LOGITS, ModelInfo, RowAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import softmax

TOP = 5
BINS = 15
MAX_MATRIX = 2000
"""With more classes than this the matrix of confusions is left out: it would have millions of cells."""
_Z = 1.959963984540054
"""Of a normal distribution, 95 % lies within so many standard deviations."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the network said about an image of a known class.

    Attributes:
        truth: index of the right class.
        predicted: index of the most probable one.
        rank: place of the right class, from 1; among equals the smaller index comes first.
        confidence: probability of the most probable class.
        loss: cross-entropy to the right class, in nats.
    """

    truth: int
    predicted: int
    rank: int
    confidence: float
    loss: float


@dataclass(frozen=True, slots=True)
class Judge:
    """The task of judging the answer for an image whose class `truth` is known, by its index."""

    truth: int

    def check(self, model: ModelInfo) -> None:
        """Refuse a class that the model doesn't have.

        Raises:
            InvalidParameter: it is none.
        """
        if not 0 <= self.truth < len(model.labels):
            raise InvalidParameter(f"{model.name} has no class {self.truth}; it has {len(model.labels)}.")

    def answer(self, row: RowAnswer, model: ModelInfo) -> Judged:
        """Compare the answer with the right class."""
        logits = row.tensors[LOGITS]
        probabilities, right = softmax(logits), logits[self.truth]
        predicted = int(logits.argmax())
        shifted = logits.astype(np.float64) - float(logits.max())
        return Judged(
            truth=self.truth,
            predicted=predicted,
            rank=1 + int((logits > right).sum()) + int((logits[: self.truth] == right).sum()),
            confidence=float(probabilities[predicted]),
            loss=float(math.log(np.exp(shifted).sum()) - shifted[self.truth]),
        )


@dataclass(frozen=True, slots=True)
class Share:
    """A share of images, and the interval around it that holds the true share in 95 of 100 cases (Wilson's)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, total: int) -> Share:
        """The share of `hits` among `total`, at least one."""
        share, square = hits / total, _Z**2 / total
        centre = (share + square / 2) / (1 + square)
        half = _Z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
        return cls(share, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < total else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassQuality:
    """One class. `recall` is None without images of it, `precision` if the network never answers with it."""

    index: int
    images: int
    answers: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Images whose confidence is above `low` and at most `high`; None where there are none."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures of `images` judged answers.

    Attributes:
        images: how many.
        top1: share whose most probable class is the right one.
        top5: share whose right class is among the five most probable; None with five classes or fewer.
        mean_recall: over the classes that have images, each with the same weight.
        loss: mean cross-entropy, in nats.
        confidence: mean probability of the most probable class.
        calibration_error: expected calibration error (ECE): how far confidence and accuracy are apart in a bin, on
            average over the images.
        bins: `BINS` of equal width.
        classes: those with images or answers, by index.
        confusions: number of images by right and most probable class, right answers included.
    """

    images: int
    top1: Share
    top5: Share | None
    mean_recall: float
    loss: float
    confidence: float
    calibration_error: float
    bins: tuple[Bin, ...]
    classes: tuple[ClassQuality, ...]
    confusions: dict[tuple[int, int], int]

    def most_confused(self, most: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: right class, answer, images; of equals the smaller indexes first."""
        mistakes = [(*pair, count) for pair, count in self.confusions.items() if pair[0] != pair[1]]
        return sorted(mistakes, key=lambda found: (-found[2], found[0], found[1]))[:most]

    def matrix(self) -> NDArray[np.int64] | None:
        """Images by right class (rows) and answer (columns), both in the order of `classes`; None if too large."""
        if len(self.classes) > MAX_MATRIX:
            return None
        place = {found.index: number for number, found in enumerate(self.classes)}
        matrix = np.zeros((len(place), len(place)), np.int64)
        for (truth, predicted), count in self.confusions.items():
            matrix[place[truth], place[predicted]] = count
        return matrix

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        matrix = self.matrix()
        return {
            "images": self.images,
            "top1": _share(self.top1),
            "top5": None if self.top5 is None else _share(self.top5),
            "mean_recall": self.mean_recall,
            "loss": self.loss,
            "calibration": {
                "error": self.calibration_error,
                "mean_confidence": self.confidence,
                "bins": [
                    {
                        "low": found.low,
                        "high": found.high,
                        "images": found.images,
                        "confidence": found.confidence,
                        "accuracy": found.accuracy,
                    }
                    for found in self.bins
                ],
            },
            "confusion": {
                "classes": [found.index for found in self.classes],
                "matrix": None if matrix is None else matrix.tolist(),
            },
        }


def quality_of(judged: Sequence[Judged], *, num_classes: int) -> Quality:
    """Add up judged answers.

    Args:
        judged: one per image, at least one.
        num_classes: of the network.
    """
    total = len(judged)
    confusions = Counter((one.truth, one.predicted) for one in judged)
    classes = _by_class(confusions)
    confidence = np.array([one.confidence for one in judged])
    right = np.array([one.rank == 1 for one in judged])
    bins = _bins(confidence, right)
    return Quality(
        images=total,
        top1=Share.of(int(right.sum()), total),
        top5=Share.of(sum(one.rank <= TOP for one in judged), total) if num_classes > TOP else None,
        mean_recall=float(np.mean([found.recall for found in classes if found.recall is not None])),
        loss=float(np.mean([one.loss for one in judged])),
        confidence=float(confidence.mean()),
        calibration_error=sum(
            found.images / total * abs(found.accuracy - found.confidence)
            for found in bins
            if found.accuracy is not None and found.confidence is not None
        ),
        bins=bins,
        classes=classes,
        confusions=dict(confusions),
    )


def _by_class(confusions: Counter[tuple[int, int]]) -> tuple[ClassQuality, ...]:
    images: Counter[int] = Counter()
    answers: Counter[int] = Counter()
    for (truth, predicted), count in confusions.items():
        images[truth] += count
        answers[predicted] += count
    return tuple(
        ClassQuality(
            index=index,
            images=images[index],
            answers=answers[index],
            recall=confusions[index, index] / images[index] if images[index] else None,
            precision=confusions[index, index] / answers[index] if answers[index] else None,
        )
        for index in sorted({*images, *answers})
    )


def _bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    place = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    found = []
    for number in range(BINS):
        chosen = place == number
        count = int(chosen.sum())
        found.append(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                images=count,
                confidence=float(confidence[chosen].mean()) if count else None,
                accuracy=float(right[chosen].mean()) if count else None,
            )
        )
    return tuple(found)


def _share(share: Share) -> dict[str, float]:
    return {"share": share.value, "low": share.low, "high": share.high}
