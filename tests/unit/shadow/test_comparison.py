from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.domain import BOXES, LOGITS, ROUTING, SCORES, Label, Placement, RoutingLayout, RowAnswer, Timings
from condconv_serve.shadow.comparison import Comparer
from tests.contract.fakes import detector_info, model_info

NAMES = ("cat", "dog", "owl")
LAYOUT = RoutingLayout(("a", "b", "c"), (2, 3, 2))
OTHER_LAYOUT = RoutingLayout(("b", "c", "d"), (3, 4, 2))


def info(names=NAMES, *, layout=LAYOUT, version="1"):
    return model_info(version=version, layout=layout, labels=[Label(i, name) for i, name in enumerate(names)])


def answer(probabilities=None, *, routing=None, layout=LAYOUT, placement=None, **tensors):
    if probabilities is not None:
        tensors[LOGITS] = np.log(np.array(probabilities, np.float32))
    tensors[ROUTING] = np.zeros(layout.shape, np.float32) if routing is None else np.array(routing, np.float32)
    timings = Timings(decode=0, queue=0, inference=0, total=0)
    return RowAnswer(tensors=tensors, timings=timings, batch_size=1, placement=placement)


def test_classifiers_by_hand():
    compare = Comparer(info(), info(version="2")).compare
    same = compare(answer([0.5, 0.3, 0.2]), answer([0.6, 0.2, 0.2]))
    assert same.agreement == 1
    assert same.distance == pytest.approx(0.1)
    other = compare(answer([0.5, 0.3, 0.2]), answer([0.1, 0.3, 0.6]))
    assert other.agreement == 0
    assert other.distance == pytest.approx(0.4)


def test_classes_are_matched_by_name_whatever_their_order_and_number():
    compare = Comparer(info(), info(("emu", "owl", "cat", "dog"), version="2")).compare
    found = compare(answer([0.1, 0.2, 0.7]), answer([0.3, 0.4, 0.1, 0.2]))
    assert found.agreement == 1
    assert found.distance == pytest.approx(0.3)  # the owl lost to the emu


def test_names_that_several_classes_have_are_told_apart_by_synsets():
    cranes = model_info(labels=[Label(0, "crane", "n1"), Label(1, "crane", "n2")])
    swapped = model_info(version="2", labels=[Label(0, "crane", "n2"), Label(1, "crane", "n1")])
    found = Comparer(cranes, swapped).compare(answer([0.8, 0.2]), answer([0.8, 0.2]))
    assert found.agreement == 0
    assert found.distance == pytest.approx(0.6)


def test_routing_of_the_blocks_that_both_have_with_as_many_experts():
    ours, theirs = info(), info(layout=OTHER_LAYOUT, version="2")
    mine = answer([0.5, 0.3, 0.2], routing=[[0.5, 0.5, 0], [0.1, 0.2, 0.3], [1, 1, 0]])
    other = answer([0.5, 0.3, 0.2], routing=[[0.2, 0.2, 0.9, 0], [1, 1, 1, 1], [0, 0, 0, 0]], layout=OTHER_LAYOUT)
    found = Comparer(ours, theirs).compare(mine, other)
    assert found.routing == {"b": pytest.approx((0.1 + 0.0 + 0.6) / 3)}
    static = info(layout=RoutingLayout(), version="3")
    assert Comparer(ours, static).compare(mine, answer([0.5, 0.3, 0.2], layout=RoutingLayout())).routing == {}


logits = st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=3).map(lambda v: np.array(v, np.float32))


@given(logits, logits)
@settings(deadline=None)
def test_numbers_stay_between_0_and_1_and_equal_answers_have_no_distance(one, other):
    compare = Comparer(info(), info(version="2")).compare
    found, back = compare(answer(logits=one), answer(logits=other)), compare(answer(logits=other), answer(logits=one))
    assert 0 <= found.distance <= 1
    assert found.distance == pytest.approx(back.distance)
    alike = compare(answer(logits=one), answer(logits=one))
    assert (alike.agreement, alike.distance) == (1, 0)


def boxes(*objects, placement=None, classes=3):
    """An answer with boxes, each of `(class, score, ymin, xmin, ymax, xmax)`."""
    scores = np.zeros((len(objects), classes), np.float32)
    for place, (kind, score, *_) in enumerate(objects):
        scores[place, kind] = score
    corners = np.array([box[2:] for box in objects], np.float32).reshape(-1, 4)
    if not objects:
        scores, corners = np.zeros((1, classes), np.float32), np.zeros((1, 4), np.float32)
    return answer(**{BOXES: corners, SCORES: scores}, placement=placement)


def detectors():
    return Comparer(detector_info(layout=LAYOUT), detector_info(version="2", layout=LAYOUT)).compare


def test_detectors_by_hand():
    compare = detectors()
    left, right = (0, 0, 1, 0.5), (0, 0.5, 1, 1)
    ours = boxes((0, 0.9, *left), (1, 0.8, *right))
    assert compare(ours, ours).agreement == 1
    assert compare(ours, ours).distance == 0
    found = compare(ours, boxes((0, 0.7, *left), (2, 0.6, *right)))  # another class on the right
    assert found.agreement == pytest.approx(2 * 1 / 4)
    assert found.distance == pytest.approx((0.2 + 0.8 + 0.6) / 3)
    missed = compare(ours, boxes((0, 0.9, 0, 0, 1, 0.24)))  # overlaps by less than a half
    assert missed.agreement == 0
    none = compare(boxes(), boxes())
    assert (none.agreement, none.distance) == (1, 0)
    assert compare(ours, boxes()).agreement == 0


def test_a_detectors_object_is_found_once():
    whole = (0, 0, 1, 1)
    found = detectors()(boxes((0, 0.9, *whole)), boxes((0, 0.8, *whole), (0, 0.7, 0, 0, 0.45, 1)))
    assert found.agreement == pytest.approx(2 / 3)


def test_boxes_are_compared_in_the_photo_wherever_each_row_lies():
    photo = {"photo_width": 200, "photo_height": 100}
    whole = Placement(**photo, left=0, top=0, width=200, height=100)
    middle = Placement(**photo, left=50, top=0, width=100, height=100)
    ours = boxes((0, 0.9, 0, 0.25, 1, 0.75), placement=whole)
    assert detectors()(ours, boxes((0, 0.9, 0, 0, 1, 1), placement=middle)).agreement == 1


def test_a_classifier_is_not_compared_with_a_detector():
    with pytest.raises(ValueError, match="Version 2 is for detection, not for classification"):
        Comparer(info(), detector_info(version="2"))


def test_photos_become_the_same_rows_whatever_the_graph_does_with_them():
    one = info().preprocessing
    assert one.makes_rows_like(replace(one, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_padding=32))
    for change in ({"image_size": 64}, {"crop_padding": 0}, {"transform": "central"}, {"exact_decoding": True}):
        assert not one.makes_rows_like(replace(one, **change))
