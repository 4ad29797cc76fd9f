import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from condconv_serve.routing.tally import ACTIVE, BINS, EDGES, ClassTally, Tally, entropy
from tests.contract.fakes import even_layout, layout_of


def tally_of(routing, classes):
    return Tally.of(routing, classes, layout_of(routing))


WEIGHTS = st.floats(0, 1, width=32)


@st.composite
def images(draw, *, most=40):
    """Routing weights and predicted classes of some images."""
    shape = (draw(st.integers(0, most)), draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    routing = draw(hnp.arrays(np.float32, shape, elements=WEIGHTS))
    return routing, draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, 6)))


def recomputed(routing, classes):
    """All figures from their definitions, image by image."""
    routing = routing.astype(np.float64)
    count, blocks, experts = routing.shape
    strongest = np.zeros((blocks, experts))
    histogram = np.zeros((blocks, experts, BINS))
    entropies = np.zeros((count, blocks))
    for n in range(count):
        for b in range(blocks):
            strongest[b, list(routing[n, b]).index(max(routing[n, b]))] += 1
            total = sum(routing[n, b])
            if experts > 1 and total > 0:
                shares = [w / total for w in routing[n, b]]
                entropies[n, b] = -sum(p * np.log(p) for p in shares if p > 0) / np.log(experts)
            for e in range(experts):
                w = routing[n, b, e]
                histogram[b, e, next(i for i in range(BINS) if w <= EDGES[i + 1])] += 1
    return {
        "mean": routing.mean(axis=0),
        "deviation": routing.std(axis=0),
        "histogram": histogram,
        "load": strongest / count,
        "active_share": (routing > ACTIVE).mean(axis=0),
        "entropy_mean": entropies.mean(axis=0),
        "entropy_deviation": entropies.std(axis=0),
    }


def assert_same(tally, other):
    assert tally.count == other.count
    for name in ("mean", "deviation", "histogram", "load", "active_share", "entropy_mean", "entropy_deviation"):
        np.testing.assert_allclose(getattr(tally, name), getattr(other, name), rtol=0, atol=1e-9, err_msg=name)
    for one, two in zip(tally.classes.counts(), other.classes.counts(), strict=True):
        np.testing.assert_array_equal(one, two)
    for index in tally.classes.counts()[0].tolist():
        np.testing.assert_allclose(tally.classes.get(index)[1], other.classes.get(index)[1], rtol=0, atol=1e-9)


@given(images())
@settings(max_examples=60, deadline=None)
def test_figures_equal_their_definitions(given_images):
    routing, classes = given_images
    tally = tally_of(routing, classes)
    assert tally.count == len(routing)
    if len(routing):
        for name, expected in recomputed(routing, classes).items():
            np.testing.assert_allclose(getattr(tally, name), expected, rtol=0, atol=1e-9, err_msg=name)
    for index in range(7):
        mine = routing[classes == index].astype(np.float64)
        found = tally.classes.get(index)
        if len(mine):
            assert found[0] == len(mine)
            np.testing.assert_allclose(found[1], mine.mean(axis=0), rtol=0, atol=1e-9)
        else:
            assert found is None


@given(images(), st.lists(st.integers(0, 40), max_size=5), st.permutations(range(6)))
@settings(max_examples=60, deadline=None)
def test_merged_equals_pooled(given_images, cuts, order):
    """However the images are divided, and in whichever order the parts are added."""
    routing, classes = given_images
    borders = [0, *sorted(min(cut, len(routing)) for cut in cuts), len(routing)]
    parts = [tally_of(routing[a:b], classes[a:b]) for a, b in itertools.pairwise(borders)]
    total = Tally(layout_of(routing))
    for number in order:
        if number < len(parts):
            total.merge(parts[number])
    assert_same(total, tally_of(routing, classes))


@given(images())
@settings(max_examples=30, deadline=None)
def test_arrays_and_back(given_images):
    tally = tally_of(*given_images)
    assert_same(Tally.from_arrays(tally.to_arrays(), layout_of(given_images[0])), tally)


def test_a_long_stream_keeps_its_precision():
    """200,000 images in many small parts, with a mean far from their deviation."""
    rng = np.random.default_rng(0)
    routing = (0.9 + 1e-4 * rng.random((40_000, 1, 2))).astype(np.float32)
    total = Tally(even_layout(1, 2))
    for start in range(0, len(routing), 50):
        total.merge(tally_of(routing[start : start + 50], np.zeros(50, np.int64)))
    for _ in range(4):
        for start in range(0, len(routing), 5000):
            total.merge(tally_of(routing[start : start + 5000], np.zeros(5000, np.int64)))
    assert total.count == 200_000
    np.testing.assert_allclose(total.mean, routing.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(total.deviation, routing.astype(np.float64).std(axis=0), rtol=1e-9)


def test_entropy():
    np.testing.assert_allclose(entropy([[1, 0, 0, 0], [0.2] * 4, [0.5, 0.5, 0, 0], [0] * 4], 4), [0, 1, 0.5, 0])
    np.testing.assert_array_equal(entropy([[0.7], [0.0]], 1), [0, 0])
    given = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0.3, 0, 0, 0]]
    np.testing.assert_allclose(entropy(given, (4, 2, 1)), [0.5, 1, 0], atol=1e-12)
    np.testing.assert_allclose(entropy([0.1, 0.3], 2), entropy([0.2, 0.6], 2))


@pytest.mark.parametrize("edge", range(BINS + 1))
def test_a_bin_holds_its_upper_end(edge):
    weight = np.float32(EDGES[edge])
    (place,) = np.flatnonzero(tally_of(np.full((1, 1, 1), weight), [0]).histogram[0, 0])
    assert EDGES[place] < float(weight) <= EDGES[place + 1] or (edge == 0 and place == 0)


def test_images_that_are_not_finite_do_not_count():
    routing = np.full((3, 1, 2), 0.25, np.float32)
    routing[1, 0, 1] = np.nan
    tally = tally_of(routing, [4, 5, 6])
    assert tally.count == 2
    assert tally.classes.counts()[0].tolist() == [4, 6]
    assert tally.mean.tolist() == [[0.25, 0.25]]


def test_tallies_of_other_shapes_do_not_add_up():
    with pytest.raises(ValueError, match="don't add up"):
        Tally(even_layout(2, 3)).merge(Tally(even_layout(3, 2)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda arrays: arrays.pop("squares"), "squares missing"),
        (lambda arrays: arrays.update(load=arrays["mean"], mean=np.zeros(3)), r"mean has shape \(3,\)"),
        (lambda arrays: arrays.update(histogram=np.zeros((2, 2, 3))), r"histogram has shape \(2, 2, 3\)"),
        (lambda arrays: arrays.update(class_sums=np.zeros((5, 2, 2))), r"class_sums has shape"),
    ],
)
def test_arrays_that_do_not_fit(change, says):
    arrays = tally_of(np.full((3, 2, 2), 0.5), [0, 1, 1]).to_arrays()
    change(arrays)
    with pytest.raises(ValueError, match=says):
        Tally.from_arrays(arrays, even_layout(2, 2))


def test_classes_beyond_the_limit_are_counted_as_dropped():
    tally = Tally(even_layout(1, 1), class_bytes=0)
    assert tally.classes.capacity == 1
    tally.merge(tally_of(np.full((6, 1, 1), 0.5), [3, 3, 3, 8, 8, 9]))
    assert tally.count == 6
    kept = sum(tally.classes.counts()[1].tolist())
    assert kept + tally.classes.dropped_images == 6
    assert tally.classes.dropped_classes == 2


@given(st.lists(st.integers(0, 30), min_size=1, max_size=300), st.integers(1, 6), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_frequent_classes_are_never_missing(stream, capacity, chunk):
    """Those with more than a `capacity`-th of the images, in whichever order they come."""
    per_class = 8 + 160
    tally = Tally(even_layout(1, 1), class_bytes=capacity * per_class)
    assert tally.classes.capacity == capacity
    for start in range(0, len(stream), chunk):
        part = stream[start : start + chunk]
        tally.merge(tally_of(np.full((len(part), 1, 1), 0.5), part))
    found, counts = tally.classes.counts()
    for index in set(stream):
        if stream.count(index) > len(stream) / capacity:
            assert index in found
    assert counts.sum() + tally.classes.dropped_images == len(stream)
    assert len(found) <= capacity


def test_memory_is_bounded_with_very_many_classes_and_experts():
    """4,000 classes, 64 experts, 40 blocks, every class seen: 32 MiB for the classes, not 80."""
    rng = np.random.default_rng(0)
    routing = rng.random((100, 40, 64)).astype(np.float32)
    tracemalloc.start()
    try:
        tally = Tally(even_layout(40, 64))
        for start in range(0, 4000, 100):
            tally.merge(tally_of(routing, np.arange(start, start + 100)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 36 * 2**20
    assert tally.count == 4000
    assert len(tally.classes) == tally.classes.capacity < 4000
    assert tally.classes.dropped_images == 4000 - len(tally.classes)
    np.testing.assert_allclose(tally.mean, routing.astype(np.float64).mean(axis=0))


def test_growing_within_the_limit_loses_nothing():
    classes = ClassTally((1, 2))
    for index in range(1000):
        classes.add(np.array([index]), np.array([2]), np.full((1, 1, 2), float(index)))
    assert len(classes) == 1000
    np.testing.assert_array_equal(classes.means(0, 1), np.arange(1000) / 2)
