"""What replicas have counted adds up to what one would have counted."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condconv_serve.domain import ROUTING, RoutingLayout, RowAnswer, Timings
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import WINDOWS
from condconv_serve.routing.tally import Tally
from condconv_serve.routing.views import live_view
from tests.contract.fakes import even_layout, model_info

LAYOUT = RoutingLayout(("block_8", "block_9"), (4, 2))
CLASSES = 6
TIMINGS = Timings(decode=0, queue=0, inference=0, total=0)
RNG = np.random.default_rng(3)
USUAL = (RNG.beta(2, 5, (200, *LAYOUT.shape)) * LAYOUT.own).astype(np.float32)
MODEL = model_info(layout=LAYOUT, classes=CLASSES, profile=profile_of(USUAL, RNG.integers(0, 3, 200), LAYOUT))


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


@st.composite
def traffic(draw: Any) -> list[tuple[int, float, Any, int]]:
    """For each image the replica that answers it, the seconds since the one before, its weights and its class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = draw(st.integers(0, 60))
    pause = draw(st.sampled_from([0.0, 0.5, 4.0, 40.0]))
    replicas, skew = rng.integers(0, 3, number), draw(st.sampled_from([1.0, 0.2]))
    weights = (rng.beta(2, 5, (number, *LAYOUT.shape)) * skew * LAYOUT.own).astype(np.float32)
    found = zip(replicas, rng.exponential(1, number) * pause, weights, rng.integers(0, CLASSES, number), strict=True)
    return [(int(replica), float(wait), routing, int(index)) for replica, wait, routing, index in found]


def answer(routing: Any, index: int) -> RowAnswer:
    logits = np.eye(CLASSES, dtype=np.float32)[index]
    return RowAnswer(tensors={"logits": logits, ROUTING: routing}, timings=TIMINGS, batch_size=1)


def assert_equal(one: Tally, other: Tally) -> None:
    assert one.count == other.count
    for name in ("histogram", "strongest", "active"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("mean", "deviation", "entropy_mean", "entropy_deviation"):
        tolerance = 1e-12 if name.endswith("mean") else 1e-9
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=tolerance, err_msg=name)
    for here, there in zip(one.classes.counts(), other.classes.counts(), strict=True):
        np.testing.assert_array_equal(here, there)
    for index in one.classes.counts()[0].tolist():
        np.testing.assert_allclose(one.classes.get(index)[1], other.classes.get(index)[1], rtol=0, atol=1e-12)  # type: ignore[index]


@given(traffic(), st.permutations(range(3)))
@settings(max_examples=25, deadline=None)
async def test_replicas_add_up_to_one(images: Any, order: Any) -> None:
    clock = Clock()
    pooled, replicas = LiveRouting(clock=clock), [LiveRouting(clock=clock) for _ in range(3)]
    for each in (pooled, *replicas):
        each.of(MODEL)
    for replica, wait, routing, index in images:
        clock.now += wait
        for each in (pooled, replicas[replica]):
            each.observe(MODEL, answer(routing, index))
    whole = await pooled.state(MODEL.name, MODEL.version, WINDOWS)
    states = [await replicas[number].state(MODEL.name, MODEL.version, WINDOWS) for number in order]
    sent = [pickle.loads(pickle.dumps(state)) for state in states]
    packed = [RoutingState.unpack(state.pack()) for state in states if state is not None]
    assert whole is not None
    for parts in (sent, packed):
        before = [state.windows["all"].count for state in parts]
        total = RoutingState.merged(parts)
        assert [state.windows["all"].count for state in parts] == before, "the parts stay as they are"
        assert total.seconds == pytest.approx(whole.seconds)
        for window in WINDOWS:
            assert_equal(total.windows[window], whole.windows[window])
            ours, expected = (live_view(MODEL, state, window=window, classes=CLASSES) for state in (total, whole))
            assert [block.get("drift") for block in ours["blocks"]] == [
                block.get("drift") for block in expected["blocks"]
            ]
            assert ours["classes"] == expected["classes"]


def test_a_sum_reaches_as_far_back_as_its_oldest_part() -> None:
    states = [RoutingState.empty(LAYOUT, model="m", version="1") for _ in range(2)]
    states[0].seconds["all"], states[1].seconds["15m"] = 100.0, 50.0
    assert RoutingState.merged(states).seconds == {"1m": 0.0, "15m": 50.0, "all": 100.0}


@pytest.mark.parametrize(
    "other",
    [
        RoutingState.empty(LAYOUT, model="other", version="1"),
        RoutingState.empty(LAYOUT, model="m", version="2"),
        RoutingState.empty(even_layout(2, 4), model="m", version="1"),
    ],
)
def test_other_models_do_not_add_up(other: RoutingState) -> None:
    with pytest.raises(InvalidParameter):
        RoutingState.merged([RoutingState.empty(LAYOUT, model="m", version="1"), other])
