"""Prior boxes and objects, and what of them becomes targets."""

import numpy as np
import pytest

from condconv_serve.domain import Objects

pytestmark = pytest.mark.tensorflow

PRIORS = np.array([[0, 0, 0.4, 0.4], [0, 0.1, 0.4, 0.5], [0.5, 0.5, 1, 1], [0.6, 0.6, 0.7, 0.7], [0, 0.6, 0.3, 0.9]])


def objects(*boxes, classes=None, crowd=None):
    count = len(boxes)
    return Objects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes if classes is not None else range(count), np.int64),
        np.array(crowd if crowd is not None else [False] * count, bool),
    )


@pytest.fixture(scope="module")
def matching():
    from condconv_serve.training.detection import matching

    return matching


def test_what_overlaps_enough_is_taken(matching):
    assert matching.match(PRIORS, objects([0, 0.05, 0.4, 0.45], [0.5, 0.5, 1, 1])).tolist() == [0, 0, 1, -1, -1]


def test_every_object_has_a_prior_box(matching):
    small = [0.0, 0.6, 0.1, 0.7]  # a ninth of the last prior box
    assert matching.match(PRIORS, objects(small)).tolist() == [-1, -1, -1, -1, 0]
    both = objects([0, 0, 0.4, 0.4], [0, 0.02, 0.38, 0.4])
    assert matching.match(PRIORS, both).tolist() == [0, 1, -1, -1, -1], "though both overlap the first one most"


def test_crowds_are_ignored(matching):
    crowd = objects([0.5, 0.5, 1, 1], [0, 0, 0.4, 0.4], crowd=[True, False])
    assert matching.match(PRIORS, crowd).tolist() == [1, 1, -2, -2, -1]
    assert matching.match(PRIORS, objects()).tolist() == [-1] * 5


def test_overlaps(matching):
    found = matching.intersection_over_union(PRIORS[:2], np.array([[0, 0, 0.4, 0.4], [0.9, 0.9, 0.9, 0.9]]))
    assert found == pytest.approx(np.array([[1, 0], [0.6, 0]]))
    assert matching.covered(PRIORS[2:4], np.array([0.5, 0.5, 0.75, 1])).tolist() == pytest.approx([0.5, 1])


def test_targets():
    from condconv_serve.nn.ssd import decode
    from condconv_serve.training.detection.batches import Anchors

    anchors = Anchors(PRIORS.astype(np.float32), (10, 10, 5, 5))
    given = objects([0, 0.05, 0.4, 0.45], [0.5, 0.5, 1, 1], [0, 0.6, 0.3, 0.601], classes=[4, 0, 1])
    targets = anchors.targets(given, smallest=0.01)
    assert targets[:, 4].tolist() == [5, 5, 1, 0, 0], "the third object is too thin to be seen"
    assert decode(targets[:3, :4], PRIORS[:3]) == pytest.approx(given.boxes[[0, 0, 1]], abs=1e-6)
