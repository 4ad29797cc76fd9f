"""COCO's average precision, where it can be worked out by hand."""

import numpy as np
import pytest

from condconv_serve.domain import Objects
from condconv_serve.tasks.average_precision import Found, quality_of_boxes

CAT, DOG = [10, 10, 30, 30], [50, 50, 90, 90]


def objects(*boxes, classes=None, crowd=None):
    count = len(boxes)
    return Objects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes if classes is not None else [0] * count, np.int64),
        np.array(crowd if crowd is not None else [False] * count, bool),
    )


def found(*boxes, scores=None, classes=None):
    count = len(boxes)
    return Found(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes if classes is not None else [0] * count, np.int64),
        np.array(scores if scores is not None else np.linspace(0.9, 0.5, count)),
    )


def test_all_is_found():
    quality = quality_of_boxes([objects(CAT, DOG), objects()], [found(CAT, DOG), found()], num_classes=1)
    assert (quality.images, quality.objects) == (2, 2)
    assert (quality.ap, quality.ap50, quality.ap75, quality.recall) == pytest.approx((1, 1, 1, 1))
    assert quality.by_size == pytest.approx({"small": 1, "medium": 1, "large": None})
    assert quality.classes[0].curve == pytest.approx((1,) * 101)


def test_half_is_found():
    (one,) = quality_of_boxes([objects(CAT, DOG)], [found(CAT)], num_classes=1).classes
    assert (one.objects, one.found, one.recall) == (2, 1, 0.5)
    assert one.ap50 == pytest.approx(51 / 101), "the precision is 1 at recalls of 0 to 0.5"


def test_a_wrong_box_counts_if_its_score_is_higher():
    wrong = [0, 80, 20, 99]
    before = quality_of_boxes([objects(CAT)], [found(wrong, CAT)], num_classes=1)
    after = quality_of_boxes([objects(CAT)], [found(CAT, wrong)], num_classes=1)
    assert (before.ap50, after.ap50) == pytest.approx((0.5, 1))


def test_an_object_is_found_once():
    twice = found(CAT, CAT, DOG)
    assert quality_of_boxes([objects(CAT, DOG)], [twice], num_classes=1).ap50 < 1
    assert quality_of_boxes([objects(CAT, DOG)], [found(CAT, DOG, CAT)], num_classes=1).ap50 == pytest.approx(1)


def test_boxes_that_fit_badly():
    shifted = [10, 14, 30, 34]  # intersection over union 2/3
    quality = quality_of_boxes([objects(CAT)], [found(shifted)], num_classes=1)
    assert (quality.ap50, quality.ap75) == pytest.approx((1, 0))
    assert quality.ap == pytest.approx(0.4), "right at 0.5, 0.55, 0.6 and 0.65"


def test_classes_are_apart():
    quality = quality_of_boxes([objects(CAT, DOG, classes=[0, 2])], [found(CAT, DOG, classes=[0, 1])], num_classes=4)
    assert [one.ap50 for one in quality.classes] == [pytest.approx(1), None, 0, None]
    assert quality.ap50 == pytest.approx(0.5), "over the classes that have objects"
    assert [one.found for one in quality.classes] == [1, 1, 0, 0]


def test_crowds_count_neither_way():
    crowd = objects(CAT, DOG, crowd=[False, True])
    quality = quality_of_boxes([crowd], [found([55, 55, 70, 70], CAT)], num_classes=1)
    assert (quality.objects, quality.ap50) == (1, pytest.approx(1))


def test_nothing_is_found_or_to_be_found():
    assert quality_of_boxes([objects(CAT)], [found()], num_classes=1).ap50 == 0
    nothing = quality_of_boxes([objects()], [found(CAT)], num_classes=1, by_size=False)
    assert (nothing.ap, nothing.classes[0].ap, nothing.by_size) == (0, None, {})
