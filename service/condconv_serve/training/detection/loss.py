"""What a detector's mistakes cost: of its boxes, and of its classes (Liu et al., 2016, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from condconv_serve.nn.ssd.coding import ScoreName

NEGATIVES_PER_POSITIVE = 3
"""So many prior boxes without an object count for each one that has one: those that are the most wrong."""
MIN_NEGATIVES = 3
"""So many count at least in each photo, also in one without objects."""


def multibox_loss(scores: ScoreName) -> Callable[[Any, Any], Any]:
    """The loss of a batch, as a scalar: that of all boxes and classes, over the number of prior boxes with an object.

    Args:
        scores: how logits become scores. With a sigmoid the background's logit doesn't count.

    Returns:
        A function of targets `[B, A, 5]`, where the fifth number is 0 for the background, `c + 1` for class `c`, and -1
        for what is ignored, and of predictions `[B, A, 4 + 1 + classes]`: encoded boxes, then logits.
    """

    def loss(targets: Any, predictions: Any) -> Any:
        kind = ops.cast(targets[..., 4], "int32")
        found = ops.cast(kind > 0, "float32")
        errors = class_errors(kind, predictions[..., 4:], scores=scores)
        boxes = ops.sum(smooth_l1(targets[..., :4] - predictions[..., :4]), axis=-1)
        total = ops.sum(errors * (found + hardest(errors, kind))) + ops.sum(boxes * found)
        return total / ops.maximum(ops.sum(found), 1.0)

    return loss


def class_errors(kind: Any, logits: Any, *, scores: ScoreName) -> Any:
    """Cross-entropy `[B, A]` in nats of logits `[B, A, 1 + classes]`; what is ignored is taken for background."""
    wanted = ops.one_hot(ops.maximum(kind, 0), logits.shape[-1])
    if scores == "softmax":
        return -ops.sum(wanted * ops.log_softmax(logits), axis=-1)
    wanted, logits = wanted[..., 1:], logits[..., 1:]
    return ops.sum(ops.softplus(logits) - wanted * logits, axis=-1)


def hardest(errors: Any, kind: Any) -> Any:
    """Which prior boxes without an object count, `[B, A]` of 0 and 1: those of each photo with the largest errors."""
    background = kind == 0
    errors = ops.where(background, ops.stop_gradient(errors), -1.0)
    rank = ops.argsort(ops.argsort(-errors, axis=-1), axis=-1)
    positives = ops.sum(ops.cast(kind > 0, "int32"), axis=-1, keepdims=True)
    most = ops.maximum(NEGATIVES_PER_POSITIVE * positives, MIN_NEGATIVES)
    return ops.cast(ops.logical_and(background, ops.cast(rank, "int32") < most), "float32")


def smooth_l1(difference: Any) -> Any:
    """Half the square up to 1, and linear beyond it."""
    size = ops.absolute(difference)
    return ops.where(size < 1, 0.5 * size * size, size - 0.5)
