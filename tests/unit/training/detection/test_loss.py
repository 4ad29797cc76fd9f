"""The loss of a detector, compared with the same in NumPy, one prior box after the other."""

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow

ANCHORS, CLASSES = 40, 3


@pytest.fixture(scope="module")
def loss():
    from condconv_serve.training.detection import loss

    return loss


def batch(seed=0, photos=3):
    rng = np.random.default_rng(seed)
    targets = np.zeros((photos, ANCHORS, 5), np.float32)
    targets[..., :4] = rng.normal(0, 2, targets[..., :4].shape)
    targets[0, :4, 4], targets[1, 7, 4] = (1, 2, 3, 1), 2
    targets[:, 20:25, 4] = -1
    return targets, rng.normal(0, 2, (photos, ANCHORS, 4 + 1 + CLASSES)).astype(np.float32)


def by_hand(targets, predictions, scores):
    total, positives = 0.0, 0
    for target, predicted in zip(targets, predictions, strict=True):
        errors = []
        for anchor in range(ANCHORS):
            kind, logits = int(target[anchor, 4]), predicted[anchor, 4:].astype(float)
            if scores == "softmax":
                error = np.log(np.exp(logits).sum()) - logits[max(kind, 0)]
            else:
                wanted = np.arange(1, CLASSES + 1) == kind
                share = 1 / (1 + np.exp(-logits[1:]))
                error = -np.log(np.where(wanted, share, 1 - share)).sum()
            if kind > 0:
                distance = np.abs(target[anchor, :4] - predicted[anchor, :4])
                total += error + np.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
                positives += 1
            elif kind == 0:
                errors.append(error)
        found = int((target[:, 4] > 0).sum())
        total += sum(sorted(errors)[::-1][: max(3 * found, 3)])
    return total / max(positives, 1)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_loss_is_what_it_says(scores, loss):
    targets, predictions = batch()
    assert float(loss.multibox_loss(scores)(targets, predictions)) == pytest.approx(
        by_hand(targets, predictions, scores), rel=1e-5
    )


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_photos_without_objects_have_a_loss(scores, loss):
    targets, predictions = batch()
    targets[..., 4] = np.minimum(targets[..., 4], 0)
    assert float(loss.multibox_loss(scores)(targets, predictions)) == pytest.approx(
        by_hand(targets, predictions, scores), rel=1e-5
    )
    targets[..., 4] = -1
    assert float(loss.multibox_loss(scores)(targets, predictions)) == 0, "of what is ignored there is none"


def test_the_worst_of_each_photo_count(loss):
    targets, predictions = batch()
    kind = targets[..., 4].astype(np.int32)
    errors = np.asarray(loss.class_errors(kind, predictions[..., 4:], scores="softmax"))
    counted = np.asarray(loss.hardest(errors, kind))
    assert counted.sum(axis=1).tolist() == [12, 3, 3]
    for one, mine, photo in zip(errors, counted, kind, strict=True):
        assert one[(photo == 0) & (mine == 1)].min() >= one[(photo == 0) & (mine == 0)].max()
