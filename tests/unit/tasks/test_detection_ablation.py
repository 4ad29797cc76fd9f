"""Which objects a detector finds with another routing are the same, lost, or new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import BOXES, ROUTING, SCORES, Placement, RoutingChange, Variant
from condconv_serve.errors import InvalidParameter
from condconv_serve.tasks.ablation import in_groups
from condconv_serve.tasks.boxes import overlaps
from condconv_serve.tasks.detection import Detect
from condconv_serve.tasks.detection_ablation import DetectionVariant, answer, check_size, similarity_of
from tests.contract.fakes import LAYOUT, detector_info, model_info

PLACEMENT = Placement(photo_width=100, photo_height=100, left=0, top=0, width=100, height=100)
LEFT, RIGHT = [0, 0, 1, 0.4], [0, 0.6, 1, 1]
Candidates = list[tuple[list[float], list[float]]]


def variant(number: int = 0) -> Variant:
    return Variant(changes=(RoutingChange(block="block_1", off=(number,)),), name=str(number))


def compared(before: Candidates, *now: Candidates, **options: Any) -> list[DetectionVariant]:
    """Rows of candidates: a box, and its scores by class."""
    rows = [before, *now]
    output = {
        BOXES: np.array([[box for box, _ in row] for row in rows], np.float32),
        SCORES: np.array([[scores for _, scores in row] for row in rows], np.float32),
        ROUTING: np.zeros((len(rows), *LAYOUT.shape), np.float32),
    }
    variants = [variant(number) for number in range(len(now))]
    found = answer(detector_info(), variants, output, detect=Detect(**options), placement=PLACEMENT)
    return list(found.variants)


def test_the_same_objects_with_other_scores() -> None:
    (found,) = compared(
        [(LEFT, [0.9, 0, 0]), (RIGHT, [0, 0.8, 0])],
        [(LEFT, [0.6, 0, 0]), ([0, 0.65, 1, 1], [0, 0.9, 0])],
    )
    assert not found.lost
    assert not found.new
    assert [(one.place, one.now.label) for one in found.kept] == [(0, "red"), (1, "green")]
    assert [one.difference for one in found.kept] == pytest.approx([-0.3, 0.1])
    assert [one.overlap for one in found.kept] == pytest.approx([1, 0.35 / 0.4])
    assert found.similarity == pytest.approx((0.6 + 0.8) / (0.9 + 0.9))


def test_another_class_is_another_object() -> None:
    (found,) = compared([(LEFT, [0.9, 0.2, 0])], [(LEFT, [0.3, 0.7, 0])])
    (lost,), (new,) = found.lost, found.new
    assert (lost.place, lost.score, lost.difference) == (0, pytest.approx(0.3), pytest.approx(-0.6))
    assert (new.now.label, new.difference) == ("green", pytest.approx(0.5))
    assert found.similarity == pytest.approx((0.3 + 0.2) / (0.9 + 0.7))


def test_a_box_that_has_moved_away_is_another_object() -> None:
    (found,) = compared([(LEFT, [0.9, 0, 0])], [(RIGHT, [0.9, 0, 0])])
    assert [(one.place, one.score) for one in found.lost] == [(0, 0)]
    assert [one.difference for one in found.new] == pytest.approx([0.9])
    assert found.similarity == 0


def test_the_highest_score_chooses_first_and_takes_what_overlaps_most() -> None:
    first, second = [0, 0, 1, 0.5], [0, 0.2, 1, 0.7]  # overlap 3/7
    near_both = [0, 0.1, 1, 0.6]  # 2/3 with each
    (found,) = compared(
        [(first, [0.9, 0, 0]), (second, [0.8, 0, 0]), (RIGHT, [0, 0, 0])],
        [([0, 0.15, 1, 0.65], [0.9, 0, 0]), (near_both, [0.8, 0, 0]), (RIGHT, [0, 0, 0])],
        iou_threshold=1,
    )
    assert [(one.place, round(one.now.score, 2)) for one in found.kept] == [(0, 0.8), (1, 0.9)]


def test_one_object_is_matched_once() -> None:
    twice: Candidates = [(LEFT, [0.9, 0, 0]), (LEFT, [0.8, 0, 0])]
    (found,) = compared([(LEFT, [0.9, 0, 0]), (RIGHT, [0, 0, 0])], twice, iou_threshold=1)
    assert [one.place for one in found.kept] == [0]
    assert [round(one.now.score, 2) for one in found.new] == [0.8]


def test_nothing_before_and_nothing_now() -> None:
    nothing: Candidates = [(LEFT, [0.1, 0, 0])]
    first, second = compared(nothing, nothing, [(LEFT, [0.6, 0, 0])])
    assert (first.kept, first.lost, first.new, first.similarity) == ((), (), (), 1)
    assert second.similarity == pytest.approx(0.1 / 0.6)
    (third,) = compared([(LEFT, [0.9, 0, 0])], nothing)
    assert [(one.place, one.score) for one in third.lost] == [(0, pytest.approx(0.1))]


def test_similarity() -> None:
    assert similarity_of([]) == 1
    assert similarity_of([(0.5, 0.5), (0.2, 0.4)]) == pytest.approx(0.7 / 0.9)


def test_overlaps_of_boxes_without_an_area() -> None:
    flat = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0]], np.float64)
    assert overlaps(np.array([0.0, 0, 1, 1]), flat).tolist() == [0, 1, 0]
    assert overlaps(np.array([0.0, 0, 0, 0]), flat).tolist() == [0, 0, 0]


def test_the_size_of_an_answer_has_a_limit() -> None:
    check_size(327, Detect(max_detections=100))
    with pytest.raises(InvalidParameter, match="max_detections may be at most 99 for these 328 variants, not 100"):
        check_size(328, Detect(max_detections=100))


def test_variants_are_computed_in_groups_that_fit_into_memory() -> None:
    some = [variant(number) for number in range(1000)]
    assert in_groups(model_info(), some[:128]) == [some[:128]]
    assert [len(group) for group in in_groups(model_info(), some)] == [128] * 7 + [104]
    wide = model_info(features=2**21)  # 8 MiB for each
    groups = in_groups(wide, some)
    assert {len(group) for group in groups} == {7, 1000 % 7}
    assert [one for group in groups for one in group] == some
    huge = model_info(features=2**28)
    assert len(in_groups(huge, some)) == 1000
