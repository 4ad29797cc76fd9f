import threading
import tracemalloc

import numpy as np
import pytest

from condconv_serve.routing.statistics import RoutingStatistics
from condconv_serve.routing.tally import Tally
from tests.contract.fakes import even_layout

SHAPE = (3, 4)
LAYOUT = even_layout(*SHAPE)


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def statistics(clock):
    return RoutingStatistics(LAYOUT, clock=clock)


def some(count, *, seed=0, classes=5):
    rng = np.random.default_rng(seed)
    return rng.random((count, *SHAPE)).astype(np.float32), rng.integers(0, classes, count)


def observe(statistics, routing, classes):
    for weights, index in zip(routing, classes, strict=True):
        statistics.observe(weights, int(index))


def assert_equals(tally, routing, classes):
    expected = Tally.of(routing, classes, LAYOUT)
    assert tally.count == expected.count == len(routing)
    for name in ("mean", "deviation", "histogram", "load", "active_share", "entropy_mean", "entropy_deviation"):
        np.testing.assert_allclose(getattr(tally, name), getattr(expected, name), rtol=0, atol=1e-9, err_msg=name)
    for index in set(np.asarray(classes).tolist()):
        found, known = tally.classes.get(index), expected.classes.get(index)
        assert found[0] == known[0]
        np.testing.assert_allclose(found[1], known[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_all_equals_a_batch_over_the_same_images(statistics, count):
    routing, classes = some(count)
    observe(statistics, routing, classes)
    for window in ("1m", "15m", "all"):
        assert_equals(statistics.read(window), routing, classes)
    totals = statistics.read(classes=False)
    assert len(totals.classes) == 0
    assert totals.count == count
    np.testing.assert_array_equal(totals.histogram, statistics.read().histogram)


@pytest.mark.parametrize(("window", "length", "parts"), [("1m", 5, 12), ("15m", 60, 15)])
def test_a_window_holds_its_parts_and_no_others(statistics, clock, window, length, parts):
    """One image in each part of the window, for three times as long as it lasts."""
    routing, classes = some(3 * parts)
    for number in range(3 * parts):
        clock.now = 6000.0 + number * length + 1.5
        observe(statistics, routing[number : number + 1], classes[number : number + 1])
        first = max(0, number + 1 - parts)
        assert_equals(statistics.read(window), routing[first : number + 1], classes[first : number + 1])
    assert_equals(statistics.read("all"), routing, classes)


def test_what_waits_to_be_counted_belongs_to_when_it_came(statistics, clock):
    routing, classes = some(3)
    observe(statistics, routing, classes)  # few enough to wait
    clock.now += 59
    assert statistics.read("1m").count in (0, 3)
    clock.now += 5
    assert statistics.read("1m").count == 0
    assert statistics.read("15m").count == 3
    clock.now += 900
    assert statistics.read("15m").count == 0
    assert statistics.read("all").count == 3


def test_windows_between_borders(statistics, clock):
    clock.now = 6004.9
    observe(statistics, *some(1))
    clock.now = 6005.1
    observe(statistics, *some(1))
    clock.now = 6059.9
    assert statistics.read("1m").count == 2
    clock.now = 6060.1  # the first one came 55.2 s ago
    assert statistics.read("1m").count == 1


def test_how_far_windows_reach(statistics, clock):
    assert statistics.seconds("all") == statistics.seconds("1m") == 0
    clock.now = 1031.0
    assert statistics.seconds("1m") == statistics.seconds("15m") == 31
    clock.now = 6003.0
    assert statistics.seconds("1m") == 58
    assert statistics.seconds("15m") == 14 * 60 + 3
    assert statistics.seconds("all") == 5003


def test_what_was_read_stays_as_it_was(statistics):
    routing, classes = some(20)
    observe(statistics, routing, classes)
    before = statistics.read()
    observe(statistics, *some(100, seed=1))
    assert_equals(before, routing, classes)


def test_reset(statistics, clock):
    observe(statistics, *some(100))
    clock.now += 10
    statistics.reset()
    assert [statistics.read(window).count for window in ("1m", "15m", "all")] == [0, 0, 0]
    assert statistics.seconds() == 0
    routing, classes = some(7, seed=2)
    observe(statistics, routing, classes)
    assert_equals(statistics.read("1m"), routing, classes)


def test_threads_lose_nothing():
    statistics = RoutingStatistics(LAYOUT)
    routing, classes = some(4000)
    parts = np.split(np.arange(4000), 4)
    threads = [threading.Thread(target=observe, args=(statistics, routing[p], classes[p])) for p in parts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert statistics.read("1m").count <= 4000
    for thread in threads:
        thread.join()
    assert_equals(statistics.read(), routing, classes)


def test_memory_is_bounded_whatever_the_traffic(clock):
    """40 blocks of 64 experts, 4,800 classes, all windows full: whole, the classes' means would take 180 MiB."""
    routing = np.random.default_rng(0).random((20, 40, 64)).astype(np.float32)
    tracemalloc.start()
    try:
        statistics = RoutingStatistics(even_layout(40, 64), clock=clock)
        index = 0
        for _ in range(240):
            clock.now += 5
            for weights in routing:
                statistics.observe(weights, index)
                index += 1
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * 2**20
    tally = statistics.read("15m")
    assert tally.count == 20 * (2200 - 36 * 60 + 14 * 60 + 5) // 5  # since second 1320, every 5 seconds
    assert tally.classes.counts()[1].sum() + tally.classes.dropped_images == tally.count
