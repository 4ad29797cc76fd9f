import itertools
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from condconv_serve.domain import ClassScore, ImageResult, Prediction, RoutingLayout, RoutingTrace, RowAnswer, Timings
from condconv_serve.errors import CorruptImage, RoutingNotFound
from condconv_serve.routing.drift import BIN_SHARE, DriftMeter, _join
from condconv_serve.routing.insight import MIN_REFERENCE_IMAGES, insight
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.recent import RecentRequest, RecentRequests
from condconv_serve.routing.tally import BINS, Tally
from condconv_serve.routing.views import classes_to_ask, insight_view
from tests.contract.fakes import even_layout, layout_of, model_info


def beta(count, a, b, *, seed=0, shape=(4, 3)):
    return np.random.default_rng(seed).beta(a, b, (count, *shape)).astype(np.float32)


def measured(reference, live):
    layout = layout_of(reference)
    meter = DriftMeter(profile_of(reference, np.zeros(len(reference), int), layout), layout)
    return meter.measure(Tally.of(live, np.zeros(len(live), int), layout_of(live)))


@pytest.mark.parametrize("count", [1, 5, 20, 100, 1000, 20_000])
def test_the_same_source_never_alarms(count):
    for seed in range(30 if count <= 1000 else 10):
        blocks = measured(beta(250, 2, 3, seed=1000 + seed), beta(count, 2, 3, seed=seed))
        assert len(blocks) == 4
        assert not any(block.alert for block in blocks)


def test_chance_is_told():
    """Without drift, the index is about what is said to be chance."""
    found = [
        block for seed in range(60) for block in measured(beta(250, 2, 3, seed=900 + seed), beta(200, 2, 3, seed=seed))
    ]
    assert np.mean([b.psi for b in found]) == pytest.approx(np.mean([b.psi_by_chance for b in found]), rel=0.15)


@pytest.mark.parametrize(("a", "b"), [(3, 2), (6, 9), (0.7, 1.05)])
def test_another_source_alarms(a, b):
    for seed in range(10):
        blocks = measured(beta(500, 2, 3, seed=1000 + seed), beta(500, a, b, seed=seed))
        assert all(block.alert for block in blocks)
        assert all(0 < block.js <= 1 for block in blocks)


def test_only_the_block_that_drifts():
    live = beta(400, 2, 3, seed=5)
    live[:, 2] = 1 - live[:, 2]
    assert [block.alert for block in measured(beta(400, 2, 3), live)] == [False, False, True, False]


def test_the_indices_are_those_of_the_definitions():
    """Two joined bins, each of ten images, so that both can be written down."""
    reference = np.repeat([0.1, 0.9], 10).reshape(20, 1, 1)
    live = np.repeat([0.1, 0.9], [30, 10]).reshape(40, 1, 1)
    p, q = np.array([30.5, 10.5]) / 41, np.array([10.5, 10.5]) / 21
    (found,) = measured(reference, live)
    m = (p + q) / 2
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert found.js == pytest.approx((p * np.log2(p / m) + q * np.log2(q / m)).sum() / 2)
    assert found.psi_by_chance == pytest.approx(1 / 20 + 1 / 40)


def test_opposite_ends_are_as_far_apart_as_can_be():
    (found,) = measured(np.repeat([0.05, 0.1], 5000).reshape(-1, 1, 1), np.full((10_000, 1, 1), 0.99))
    assert found.alert
    (found,) = measured(np.linspace(0, 0.5, 10_000).reshape(-1, 1, 1), np.full((10_000, 1, 1), 0.99))
    assert found.psi > 5
    assert 0.5 < found.js <= 1


def test_every_joined_bin_holds_enough():
    for n, a in itertools.product((1, 7, 250), (0.2, 2)):
        histogram = Tally.of(beta(n, a, 3, shape=(2, 2)), np.zeros(n, int), even_layout(2, 2)).histogram
        images = int(histogram[0, 0].sum())
        groups, sizes = _join(histogram, images)
        assert (np.diff(groups, axis=-1) >= 0).all()
        for place in np.ndindex(2, 2):
            held = np.bincount(groups[place], weights=histogram[place], minlength=sizes[place])
            assert held.min() >= min(BIN_SHARE * images, images)
    assert groups.shape[-1] == BINS


def test_a_constant_expert_has_one_bin_and_no_drift():
    (found,) = measured(np.full((50, 1, 1), 0.5), np.full((50, 1, 1), 0.5))
    assert (found.psi, found.js, found.alert) == (0, 0, False)


def test_experts_that_a_block_does_not_have_change_nothing():
    reference, live = beta(250, 2, 3, shape=(2, 2)), beta(100, 3, 2, seed=1, shape=(2, 2))
    classes = np.zeros(250, int)
    expected = measured(reference, live)
    reference[:, 1, 1] = live[:, 1, 1] = 0
    layout = RoutingLayout(("block_1", "block_2"), (2, 1))
    meter = DriftMeter(profile_of(reference, classes, layout), layout)
    first, second = meter.measure(Tally.of(live, classes[:100], layout))
    alone = [weights[:, 1:, :1] for weights in (reference, live)]
    assert first == expected[0]
    assert second == measured(*alone)[0]


def test_nothing_to_compare():
    assert measured(beta(50, 2, 3), beta(0, 2, 3)) == []
    assert measured(beta(0, 2, 3), beta(50, 2, 3)) == []
    assert measured(beta(50, 2, 3), beta(50, 2, 3, shape=(4, 2))) == []


def test_profile():
    routing, classes = beta(40, 2, 3), np.repeat([3, 8, 5], [20, 4, 16])
    profile = profile_of(routing, classes, layout_of(routing), min_class_images=5)
    assert profile.images == 40
    np.testing.assert_allclose(profile.mean, routing.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(profile.deviation, routing.std(axis=0), rtol=1e-5)
    assert profile.classes.tolist() == [3, 5]
    assert profile.class_images.tolist() == [20, 16]
    np.testing.assert_allclose(profile.class_mean[1], routing[24:].mean(axis=0), rtol=1e-6)
    assert (profile.histogram.sum(axis=-1) == 40).all()
    np.testing.assert_allclose(profile.load.sum(axis=-1), 1)
    assert profile_of(routing, classes, layout_of(routing), min_class_images=99).class_mean.shape == (0, 4, 3)


@pytest.mark.parametrize("images", [1, 2, 19, 20, 250])
async def test_one_in_twenty_of_a_references_own_images_is_unusual(images):
    routing = beta(images, 2, 3)
    layout = layout_of(routing)
    profile = profile_of(routing, np.zeros(images, int), layout)
    # Each image against a profile of all others, as a new image is.
    found = []
    for left_out in range(min(images, 200)):
        rest = np.delete(routing, left_out, axis=0)
        other = profile_of(rest, np.zeros(len(rest), int), layout)
        limits = replace(profile, mean=other.mean)
        found.append(insight(RoutingTrace(layout, routing[left_out]), profile=limits))
    if images < MIN_REFERENCE_IMAGES:
        assert {one.unusual for one in found} == {None}, "too few to tell"
        return
    assert np.mean([one.unusual for one in found]) == pytest.approx(0.05, abs=0.03)
    distances = np.stack([one.reference_distance for one in found])
    assert (distances < profile.typical_distance).mean(axis=0) == pytest.approx(0.5, abs=0.1)


# --- insight


async def test_live_traffic_is_only_asked_about_classes_that_the_profile_lacks():
    routing = beta(20, 2, 3)
    layout = layout_of(routing)
    model, live = model_info(layout=layout, profile=profile_of(routing, np.full(20, 3), layout)), LiveRouting()
    timings = Timings(decode=0, queue=0, inference=0, total=0)
    for index in (3, 4, 4, 4, 4, 4, 5):
        logits = np.eye(6, dtype=np.float32)[index]
        live.observe(model, RowAnswer(tensors={"logits": logits, "routing": routing[0]}, timings=timings, batch_size=1))
    predictions = [
        Prediction(
            best=ClassScore(index, "label", None, 0.5),
            classes=(),
            routing=RoutingTrace(layout, routing[0]),
            timings=timings,
            batch_size=1,
        )
        for index in range(3, 6)
    ]
    asked = classes_to_ask(predictions, model)
    assert asked == {4, 5}
    seen = await live.class_means(model.name, model.version, asked)
    assert {index: images for index, (images, _) in seen.items()} == {4: 5, 5: 1}
    assert await live.class_means(model.name, "2", asked) == {}
    profiles = [insight_view(prediction, model, live=seen)["class_profile"] for prediction in predictions]
    assert [known and known["source"] for known in profiles] == ["reference", "live", None]


# --- recent requests

BLOCKS = ("block_1",)


def request(name, images=1, *, experts=4, classes=0):
    batch = np.ones((8, 1, experts), np.float32)
    scored = tuple(ClassScore(i, "label of the model", None, i / 7) for i in range(1000, 1000 + classes))
    prediction = Prediction(
        best=ClassScore(0, "label", None, 0.5),
        classes=scored,
        routing=RoutingTrace(even_layout(BLOCKS, experts), batch[3]),
        timings=Timings(decode=0, queue=0, inference=0, total=0),
        batch_size=8,
    )
    results = [ImageResult(id=str(i), filename="a", prediction=prediction) for i in range(images - 1)]
    results.append(ImageResult(id="bad", filename=None, error=CorruptImage("broken")))
    return RecentRequest(request_id=name, model="m", version="1", at=0.0, results=tuple(results))


async def test_recent_requests_by_owner():
    recent = RecentRequests()
    recent.remember(request("a"), owner="ann")
    recent.remember(request("a", 3), owner="bob")
    recent.remember(request("b"), owner=None)
    assert len((await recent.find("a", owner="ann")).results) == 1
    assert len((await recent.find("a", owner="bob")).results) == 3
    for name, owner in (("a", None), ("b", "ann"), ("c", "ann")):
        with pytest.raises(RoutingNotFound):
            await recent.find(name, owner=owner)


async def test_a_later_request_of_the_same_id_replaces_the_first():
    recent = RecentRequests(max_requests=2)
    recent.remember(request("a"), owner=None)
    recent.remember(request("b"), owner=None)
    recent.remember(request("a", 2), owner=None)
    recent.remember(request("c"), owner=None)  # b is the oldest now
    assert len((await recent.find("a", owner=None)).results) == 2
    with pytest.raises(RoutingNotFound):
        await recent.find("b", owner=None)


async def test_memory_is_bounded():
    one = request("x", 3, experts=1000).size
    assert one > 2 * 4000
    recent = RecentRequests(max_bytes=10 * one)
    for number in range(100):
        recent.remember(request(str(number), 3, experts=1000), owner=None)
    kept = [number for number in range(100) if await _known(recent, str(number))]
    assert kept == list(range(90, 100))
    recent.remember(request("huge", 200, experts=1000), owner=None)
    assert not await _known(recent, "huge")
    assert await _known(recent, "99")


async def test_classes_take_memory_too():
    tracemalloc.start()
    try:
        given = request("x", 2, classes=5000)
        assert given.size > 0.9 * tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


async def test_whole_batches_are_not_kept_alive():
    recent = RecentRequests()
    given = request("a", 2)
    recent.remember(given, owner=None)
    weights = (await recent.find("a", owner=None)).results[0].prediction.routing.weights
    assert weights.base is None
    assert (await recent.find("a", owner=None)).results[0].prediction.routing.layout == even_layout(BLOCKS, 4)
    np.testing.assert_array_equal(weights, given.results[0].prediction.routing.weights)


async def test_images_that_failed_are_not_kept_alive():
    class Data(bytearray):
        pass

    def decode(data):
        try:
            raise ValueError(len(data))
        except ValueError as error:
            raise CorruptImage("broken") from error

    data = Data(1000)
    freed = weakref.ref(data)
    try:
        decode(data)
    except CorruptImage as error:
        failed = ImageResult(id="0", filename=None, error=error)
    recent = RecentRequests()
    recent.remember(replace(request("a"), results=(failed,)), owner=None)
    del data, failed
    assert freed() is None
    assert str((await recent.find("a", owner=None)).results[0].error) == "broken"


async def _known(recent, name):
    try:
        await recent.find(name, owner=None)
    except RoutingNotFound:
        return False
    return True
