"""From candidate boxes to objects in a photo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.domain import BOXES, ROUTING, SCORES, Box, Placement, RowAnswer, Timings
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.classification import Classify
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.suppression import MAX_CANDIDATES, suppress
from tests.contract.fakes import LAYOUT, ColourDetector, detector_info, model_info

INFO = detector_info()
TIMINGS = Timings(decode=0, queue=0, inference=0, total=0)


def row(boxes: Any, scores: Any, placement: Placement | None = None) -> RowAnswer:
    tensors = {
        BOXES: np.array(boxes, np.float32).reshape(-1, 4),
        SCORES: np.array(scores, np.float32).reshape(-1, 3),
        ROUTING: np.full(LAYOUT.shape, 0.5, np.float32),
    }
    return RowAnswer(tensors=tensors, timings=TIMINGS, batch_size=2, placement=placement)


def test_objects_in_pixels_of_the_photo() -> None:
    wide = Placement(photo_width=200, photo_height=100, left=0, top=0, width=200, height=200)  # padded below
    answer = Detect().answer(row([[0.1, 0.2, 0.4, 0.5]], [[0.1, 0.9, 0.2]], wide), INFO)
    (found,) = answer.objects
    assert (found.index, found.label, found.synset) == (1, "green", "n1")
    assert found.score == pytest.approx(0.9)
    assert vars_of(found.box) == pytest.approx((40, 20, 100, 80))
    assert vars_of(found.box_normalized) == pytest.approx((0.2, 0.2, 0.5, 0.8))
    assert (answer.width, answer.height, answer.batch_size, answer.routing.layout) == (200, 100, 2, LAYOUT)


def vars_of(box: Box) -> tuple[float, float, float, float]:
    return box.xmin, box.ymin, box.xmax, box.ymax


def test_boxes_are_cut_at_the_photos_edges() -> None:
    crop = Placement(photo_width=300, photo_height=100, left=100, top=0, width=100, height=100)
    boxes = [[-1, -2, 0.5, 0.5], [0.2, 0.2, 1.4, 9]]
    (first, second) = Detect().answer(row(boxes, [[0.9, 0, 0], [0, 0.8, 0]], crop), INFO).objects
    assert vars_of(first.box) == pytest.approx((0, 0, 150, 50))
    assert vars_of(second.box) == pytest.approx((120, 20, 300, 100))


def test_what_lies_outside_of_the_photo_is_left_out() -> None:
    padded = Placement(photo_width=200, photo_height=100, left=0, top=0, width=200, height=200)
    assert not Detect().answer(row([[0.6, 0.1, 0.9, 0.3]], [[0.9, 0, 0]], padded), INFO).objects
    assert not Detect().answer(row([[0.3, 0.4, 0.2, 0.3]], [[0.9, 0, 0]], padded), INFO).objects  # inside out


def test_pixels_are_their_own_photo() -> None:
    (found,) = Detect().answer(row([[0, 0, 0.5, 1]], [[0.9, 0, 0]]), INFO).objects
    assert vars_of(found.box) == (0, 0, 32, 16)


def test_classes_dont_suppress_each_other() -> None:
    same = [[0.1, 0.1, 0.5, 0.5]] * 3
    found = Detect().answer(row(same, [[0.7, 0.8, 0.1], [0.9, 0.6, 0.1], [0.95, 0.2, 0.1]]), INFO).objects
    assert [(one.label, round(one.score, 2)) for one in found] == [("red", 0.95), ("green", 0.8)]


def test_thresholds_and_limits() -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 1, 0.6], [0, 0, 0.1, 0.1]]  # overlap 0.6, 0.01, 1/60
    answer = row(boxes, [[0.9, 0, 0], [0.8, 0, 0], [0.7, 0, 0]])

    def scores(**given: Any) -> list[float]:
        return [round(one.score, 2) for one in Detect(**given).answer(answer, INFO).objects]

    assert scores() == [0.9, 0.7]
    assert scores(iou_threshold=0.61) == [0.9, 0.8, 0.7]
    assert scores(iou_threshold=0.0) == [0.9]
    assert scores(score_threshold=0.75) == [0.9]
    assert scores(max_detections=1) == [0.9]
    assert scores(score_threshold=0.95) == []


def test_a_score_must_be_above_its_threshold() -> None:
    answer = row([[0, 0, 1, 1]], [[0.5, 0, 0]])
    assert not Detect(score_threshold=0.5).answer(answer, INFO).objects
    assert Detect(score_threshold=0.499).answer(answer, INFO).objects


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"score_threshold": -0.1}, "score_threshold must be from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"iou_threshold": 1.1}, "iou_threshold must be from 0 to 1"),
        ({"max_detections": 0}, "max_detections must be from 1 to 1000"),
        ({"max_detections": 1001}, "max_detections"),
    ],
)
def test_impossible_parameters(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidParameter, match=says):
        Detect(**given).check(INFO)


def test_the_other_tasks_model() -> None:
    with pytest.raises(InvalidParameter, match="fake is a model for classification"):
        Detect().check(model_info())
    with pytest.raises(InvalidParameter, match="fake-detector is a model for detection"):
        Classify().check(INFO)


def test_the_fake_detector_finds_a_red_patch() -> None:
    rows = np.full((1, 32, 32, 3), 90, np.uint8)
    rows[0, 8:12, 16:20] = (255, 0, 0)
    tensors = {name: values[0] for name, values in ColourDetector()(rows).items()}
    (found,) = Detect().answer(replace(row([], []), tensors=tensors), INFO).objects
    assert (found.label, found.score, vars_of(found.box)) == ("red", 1, (16, 8, 20, 12))


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_of_all_classes_the_highest_scores_remain(limit: int) -> None:
    random = np.random.default_rng(limit)
    corners = random.uniform(0, 0.7, (200, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0.05, 0.3, (200, 2))], axis=1).astype(np.float32)
    scores = (random.integers(0, 9, (200, 4)) / 8).astype(np.float32)  # with ties
    expected = []
    for index in range(4):
        above = np.flatnonzero(scores[:, index] > 0.25)
        kept = suppress(boxes[above], scores[above, index], iou_threshold=0.3, limit=200)
        expected += [(-float(scores[anchor, index]), index, int(anchor)) for anchor in above[kept]]
    expected = sorted(expected, key=lambda one: one[:2])[:limit]
    found = Detect(score_threshold=0.25, iou_threshold=0.3, max_detections=limit).select(boxes, scores)
    np.testing.assert_array_equal(found[0], boxes[[anchor for _, _, anchor in expected]])
    assert found[1].tolist() == [index for _, index, _ in expected]
    assert found[2].tolist() == [-score for score, _, _ in expected]


def test_of_very_many_boxes_those_with_the_highest_scores_are_looked_at() -> None:
    random = np.random.default_rng(0)
    scores = (random.integers(0, 50, 3000) / 49).astype(np.float32)  # with ties at the edge, too
    found = suppress(np.zeros((3000, 4), np.float32), scores, iou_threshold=0.5, limit=3000)
    assert found.tolist() == np.argsort(-scores, kind="stable")[:MAX_CANDIDATES].tolist()


numbers = st.integers(-2, 10).map(lambda eighths: eighths / 8)  # exact, so that no rounding decides


@settings(deadline=None)
@given(
    boxes=st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=12),
    threshold=st.integers(0, 16).map(lambda sixteenths: sixteenths / 16),
    limit=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_suppression_as_its_definition_says(
    boxes: list[tuple[float, float, float, float]], threshold: float, limit: int, seed: int
) -> None:
    array = np.array(boxes, np.float32)
    scores = (np.random.default_rng(seed).integers(0, 5, len(array)) / 4).astype(np.float32)  # with ties
    expected: list[int] = []
    for one in sorted(range(len(array)), key=lambda number: (-scores[number], number)):
        if len(expected) < limit and all(overlap(array[one], array[other]) <= threshold for other in expected):
            expected.append(one)
    assert suppress(array, scores, iou_threshold=threshold, limit=limit).tolist() == expected


def overlap(first: Any, second: Any) -> float:
    def area(box: Any) -> float:
        return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)

    one, two = first.astype(np.float64), second.astype(np.float64)
    common = area(np.concatenate([np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])]))
    union = area(one) + area(two) - common
    return common / union if common else 0.0
