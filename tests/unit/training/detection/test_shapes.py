"""Feature maps and prior boxes that fit objects."""

import numpy as np
import pytest

from condconv_serve.domain import Objects

pytestmark = pytest.mark.tensorflow


def drawn(scales, ratio, *, count=400):
    """Objects of a range of scales, anywhere in the row."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.uniform(*np.log(scales), count))
    shape = ratio * np.exp(rng.normal(0, 0.15, count))
    size = np.stack([scale / np.sqrt(shape), scale * np.sqrt(shape)], axis=1)
    corner = rng.uniform(0, 1 - size)
    boxes = np.concatenate([corner, corner + size], axis=1)
    return [Objects(boxes, np.zeros(count, np.int64), np.zeros(count, bool))]


@pytest.mark.parametrize(
    ("scales", "ratio", "maps"), [((0.05, 0.4), 0.8, 3), ((0.2, 0.45), 1.0, 2), ((0.1, 0.7), 1.0, 4)]
)
def test_every_object_overlaps_some_prior_box(scales, ratio, maps):
    from condconv_serve.nn.ssd import prior_boxes
    from condconv_serve.training.detection.matching import intersection_over_union
    from condconv_serve.training.detection.shapes import fitting_maps

    objects = drawn(scales, ratio)
    found = fitting_maps(objects, image_size=320)
    sizes = {"stride_8": 40, "stride_16": 20, "stride_32": 10}
    sides = [sizes[tap] for tap in found["taps"]] + [5, 3, 2][: len(found["extras"])]
    assert len(found["prior_boxes"]) == len(sides) == maps
    priors = prior_boxes([(side, side) for side in sides], found["prior_boxes"])
    best = intersection_over_union(priors, objects[0].boxes).max(axis=0)
    assert (best > 0.5).mean() > 0.95
    assert best.mean() > 0.65


def test_odd_objects_have_prior_boxes_that_can_be_had():
    from condconv_serve.training.detection.shapes import fitting_maps

    line = Objects(np.array([[0, 0, 1e-6, 1.0]]), np.zeros(1, np.int64), np.zeros(1, bool))
    for shapes in fitting_maps([line], image_size=64)["prior_boxes"]:
        assert all(0.01 <= scale <= 1 and 0.05 <= ratio <= 20 for scale, ratio in shapes)
