"""How far one precision's answers are from another's, on rows of real photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from condconv_serve.domain import LOGITS, Engine, Row
from condconv_serve.tasks.classification import softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What comparing the answers for `rows` rows found.

    `top1` is the share of rows with the same most likely class; `largest_difference` and `mean_difference` are of
    probabilities: the largest over all rows and classes, and the mean over the rows of the most likely class's.
    """

    rows: int
    top1: float
    largest_difference: float
    mean_difference: float


def compare(engine: Engine, reference: Engine, rows: Sequence[Row], *, batch_size: int = 4) -> Agreement:
    """Compare two engines of one model.

    Args:
        engine: the one in question.
        reference: the one to agree with.
        rows: `[image_size, image_size, 3]` each, at least one.
        batch_size: rows computed at once.
    """
    same, largest, top = 0, 0.0, 0.0
    for start in range(0, len(rows), batch_size):
        batch = np.stack(rows[start : start + batch_size])
        found, expected = softmax(engine(batch)[LOGITS]), softmax(reference(batch)[LOGITS])
        best = expected.argmax(axis=1)
        same += int((found.argmax(axis=1) == best).sum())
        off = np.abs(found - expected)
        largest = max(largest, float(off.max()))
        top += float(off[np.arange(len(best)), best].sum())
    return Agreement(rows=len(rows), top1=same / len(rows), largest_difference=largest, mean_difference=top / len(rows))
