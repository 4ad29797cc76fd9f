"""Which classes images count for in the statistics by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import BOXES, LOGITS, ROUTING, SCORES, RowAnswer, Timings
from condconv_serve.routing.found import classes_in
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.tally import Tally
from condconv_serve.routing.views import live_view
from tests.contract.fakes import LAYOUT, detector_info, even_layout

TIMINGS = Timings(decode=0, queue=0, inference=0, total=0)


def scores(*anchors: Any) -> dict[str, Any]:
    return {SCORES: np.array(anchors, np.float32).reshape(-1, 3)}


@pytest.mark.parametrize(
    ("tensors", "classes"),
    [
        ({LOGITS: np.array([0, 3, 1], np.float32)}, [1]),
        (scores((0.9, 0.1, 0.1), (0.1, 0.2, 0.6), (0.8, 0.0, 0.0)), [0, 2]),
        (scores((0.5, 0.5, 0.5)), []),
        (scores((0.4, 0.1, 0.1)), []),
        (scores(), []),
    ],
)
def test_classes(tensors: dict[str, Any], classes: list[int]) -> None:
    assert classes_in(tensors).tolist() == classes


def test_images_of_several_classes_and_of_none() -> None:
    routing = np.random.default_rng(0).random((4, 2, 3))
    routing[2, 0, 0] = np.nan  # doesn't count, nor do its classes
    layout = even_layout(2, 3)
    tally = Tally.of(routing, [np.array([1, 4]), np.array([], int), np.array([4, 5]), 4], layout)
    assert tally.count == 3
    found, images = tally.classes.counts()
    assert dict(zip(found.tolist(), images.tolist(), strict=True)) == {1: 1, 4: 2}
    for index, places in ((1, [0]), (4, [0, 3])):
        known = tally.classes.get(index)
        assert known is not None
        np.testing.assert_allclose(known[1], routing[places].mean(axis=0))
    assert Tally.of(routing, [np.array([], int)] * 4, layout).classes.counts()[0].tolist() == []
    one_each = Tally.of(routing, [3, 1, 0, 1], layout), Tally.of(routing, np.array([3, 1, 0, 1]), layout)
    assert len({str(tally.classes.to_arrays()) for tally in one_each}) == 1


async def test_live_statistics_and_drift_of_a_detector() -> None:
    """Half of the images show something. Later ones are routed otherwise, which drift tells."""
    rng = np.random.default_rng(0)
    usual = rng.uniform(0.2, 0.5, (60, *LAYOUT.shape)).astype(np.float32) * LAYOUT.own
    shown = [np.array([0, 2]) if number % 2 else np.array([], int) for number in range(60)]
    profile = profile_of(usual, shown, LAYOUT)
    assert profile.images == 60
    assert (profile.classes.tolist(), profile.class_images.tolist()) == ([0, 2], [30, 30])
    info = replace(detector_info(), routing_profile=profile)
    live = LiveRouting()

    def answer(routing: Any, found: Any) -> None:
        tensors = {BOXES: np.zeros((1, 4), np.float32), **scores(np.isin(range(3), found) * 0.9), ROUTING: routing}
        live.observe(info, RowAnswer(tensors=tensors, timings=TIMINGS, batch_size=1))

    async def state() -> RoutingState:
        found = await live.state(info.name, info.version, ["all"])
        assert found is not None
        return found

    for routing, found in zip(usual, shown, strict=True):
        answer(routing, found)
    view = live_view(info, await state(), window="all", classes=5)
    assert view["images"] == 60
    assert [(one["label"], one["images"]) for one in view["classes"]["most_frequent"]] == [("red", 30), ("blue", 30)]
    assert view["drift_alert"] is False
    for routing in usual:
        answer(routing * 0.2, np.array([1]))
    assert live_view(info, await state(), window="all", classes=5)["drift_alert"] is True
