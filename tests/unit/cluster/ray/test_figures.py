"""Figures of several replicas: they are those of one replica that had answered everything, each request once."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace

import numpy as np
import pytest

from condconv_serve.cluster.ray.figures import Figures, HandOver, Observed, Reporter
from condconv_serve.cluster.ray.shared import SharedState
from condconv_serve.domain import LOGITS, ROUTING, RowAnswer, Timings
from condconv_serve.errors import CorruptImage
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.recent import RecentRequest
from condconv_serve.shadow.comparison import Comparison
from condconv_serve.shadow.counts import PairTally
from condconv_serve.telemetry.tally import Tallies, Total
from tests.contract.fakes import LAYOUT, model_info
from tests.contract.until import until
from tests.unit.cluster.ray.reports import report

MODEL = model_info()
TIMINGS = Timings(decode=0.01, queue=0.02, inference=0.03, total=0.07)


def rows(seed, number):
    random = np.random.default_rng(seed)
    return [
        RowAnswer(
            tensors={
                LOGITS: random.random(6).astype(np.float32),
                ROUTING: random.random(LAYOUT.shape).astype(np.float32),
            },
            timings=TIMINGS,
            batch_size=1,
        )
        for _ in range(number)
    ]


def observed(found, token, model=MODEL):
    return pickle.loads(pickle.dumps(Observed.of(found, token=token, model=model)))


async def test_statistics_of_two_replicas_are_those_of_one():
    pooled, figures = LiveRouting(), Figures()
    figures.know([MODEL])
    for number in range(10):
        found = rows(number, 3)
        for row in found:
            pooled.observe(MODEL, row)
        handed = HandOver(
            replica=f"r{number % 2}", observed=[observed([*found, CorruptImage("damaged")], f"t{number}")]
        )
        figures.add(handed)
        figures.add(handed)  # its first answer was lost on the way
    expected = await pooled.state("fake", "1", ("1m", "all"))
    together = await figures.live.state("fake", "1", ("1m", "all"))
    for window in ("1m", "all"):
        mine, its = together.windows[window].to_arrays(), expected.windows[window].to_arrays()
        assert mine.keys() == its.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], its[name])
    assert together.windows["all"].count == 30


def test_rows_without_answers_or_routing_add_nothing():
    assert Observed.of([CorruptImage("damaged")], token="t", model=MODEL) is None
    static = model_info(layout=type(LAYOUT)())
    assert Observed.of(rows(0, 1), token="t", model=static) is None


async def test_tallies_add_up_and_those_of_dead_replicas_stay():
    first, second, pooled, figures = Tallies(), Tallies(), Tallies(), Figures()
    figures.know([MODEL])
    for number, tallies in enumerate([first, second, first]):
        for each in (tallies, pooled):
            each.request("fake", "1", seconds=0.5 * number, answers=rows(0, number), whole=number != 1)
            each.batch("fake", "1", rows=number + 1, seconds=0.25)
        for name, own in (("a", first), ("b", second)):
            (tally,) = await own.read([("fake", "1")])
            figures.add(HandOver(replica=name, observed=[], tallies={("fake", "1"): tally}))
    (expected,) = await pooled.read([("fake", "1")])
    found = figures.tally("fake", "1")
    assert found.batches == expected.batches
    assert (found.success, found.failure, found.decode) == (expected.success, expected.failure, expected.decode)
    assert figures.tally("fake", "2").success.count == 0


async def test_totals_of_many_replicas_that_came_and_went_are_kept_as_one(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.figures.MAX_REPLICAS", 2)
    figures = Figures()
    figures.know([MODEL])
    for number in range(20):
        own = Tallies()
        for _ in range(2):
            own.batch("fake", "1", rows=1, seconds=0.25)
            (tally,) = await own.read([("fake", "1")])
            figures.add(HandOver(replica=f"r{number}", observed=[], tallies={("fake", "1"): tally}))
    assert figures.tally("fake", "1").batches[1] == Total(40, 10.0)
    assert sum(len(totals._known) + len(totals._gone) for totals in figures._tallies.values()) == 3


def compared(tally, **routing):
    tally.add(Comparison(agreement=1.0, distance=0.25, routing=routing))


def counts_without_time(found):
    return [replace(counts, since=0) for counts in found]


def test_comparisons_of_all_replicas_add_up():
    versions = [model_info("fake", "1"), model_info("fake", "2")]
    pooled, own = PairTally("fake", "1", "2"), {name: PairTally("fake", "1", "2") for name in "ab"}
    figures = Figures()
    figures.know(versions)
    for number in range(6):
        for tally in (pooled, own["ab"[number % 2]]):
            compared(tally, block_8=0.5, **({"block_9": 0.25} if number % 2 else {}))
            tally.skip("busy")
        for name, tally in own.items():
            figures.add(pickle.loads(pickle.dumps(HandOver(replica=name, observed=[], shadows=[tally.read()]))))
    assert counts_without_time(figures.shadows("fake")) == counts_without_time([pooled.read()])
    assert figures.shadows("other") == []
    figures.keep_only([("fake", "1")])
    assert figures.shadows("fake") == []  # the other version has gone, as on a replica


def test_comparisons_of_a_version_that_was_replaced_are_forgotten():
    tally, figures = PairTally("fake", "1", "2"), Figures()
    compared(tally)
    second = model_info("fake", "2")
    figures.know([model_info("fake", "1"), second])
    figures.add(HandOver(replica="gone", observed=[], shadows=[tally.read()]))
    figures.know([second])
    assert len(figures.shadows("fake")) == 1
    figures.know([replace(second, manifest=second.manifest.model_copy(update={"licence": "MIT"}))])
    assert figures.shadows("fake") == []


async def test_versions_that_nobody_serves_are_forgotten_but_not_when_all_replicas_died():
    state = SharedState()
    await state.publish(report("a", "1"))
    await state.hand_over(HandOver(replica="a", observed=[observed(rows(0, 2), "t")]))
    await state.leave("a")
    assert (await state.routing_state("fake", "1", ("all",))).windows["all"].count == 2
    await state.publish(report("b", "1"))
    assert (await state.routing_state("fake", "1", ("all",))).windows["all"].count == 2
    assert set(await state.class_means("fake", "1", range(6)))
    assert await state.reset("fake", None) == [("fake", "1")]
    assert (await state.routing_state("fake", "1", ("all",))).windows["all"].count == 0
    await state.publish(report("b", "2", number=2))
    assert await state.routing_state("fake", "1", ("all",)) is None
    assert (await state.tallies([("fake", "1")]))[0].success.count == 0


async def test_recent_requests_are_kept_for_their_owner():
    state = SharedState()
    request = RecentRequest(request_id="mine", model="fake", version="1", at=1.0, results=())
    await state.remember(pickle.loads(pickle.dumps(request)), "ci")
    assert (await state.find_recent("mine", "ci")).model == "fake"
    assert (await state.find_recent("mine", "other")).slug == "routing_not_found"


class Keeper:
    def __init__(self):
        self.asked = 0
        self.batches = []
        self.broken = False
        self.go_on = asyncio.Event()

    async def __call__(self, batch):
        self.asked += 1
        await self.go_on.wait()
        if self.broken:
            raise ConnectionError("gone")
        self.batches.append([one.token for one in batch])


async def test_many_requests_are_handed_over_at_once(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.figures.HAND_OVER_SECONDS", 600)
    keeper = Keeper()
    reporter = Reporter(keeper)
    found = rows(0, 1)
    first = asyncio.create_task(reporter.report(observed(found, "0")))
    await until(lambda: keeper.asked)
    others = [asyncio.create_task(reporter.report(observed(found, str(number)))) for number in range(1, 5)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (first, *others))  # no answer before it is counted
    keeper.go_on.set()
    await asyncio.gather(first, *others)
    assert keeper.batches == [["0"], ["1", "2", "3", "4"]]


async def test_answers_dont_wait_for_a_keeper_that_is_gone(monkeypatch, caplog):
    monkeypatch.setattr("condconv_serve.cluster.ray.figures.HAND_OVER_SECONDS", 600)
    keeper = Keeper()
    keeper.go_on.set()
    keeper.broken = True
    reporter = Reporter(keeper)
    async with asyncio.timeout(60):
        await reporter.report(observed(rows(0, 1), "lost"))
    keeper.broken = False
    await reporter.flush()
    assert keeper.batches == [["lost"]]


async def test_nobody_waits_for_a_keeper_that_didnt_answer_the_last_time(monkeypatch):
    monkeypatch.setattr("condconv_serve.cluster.ray.figures.HAND_OVER_SECONDS", 0.01)
    keeper = Keeper()  # it hangs
    reporter = Reporter(keeper)
    await reporter.report(observed(rows(0, 1), "1"))
    monkeypatch.setattr("condconv_serve.cluster.ray.figures.HAND_OVER_SECONDS", 600)
    async with asyncio.timeout(60):
        await reporter.report(observed(rows(0, 1), "2"))
        await asyncio.sleep(0)
        await reporter.report(observed(rows(0, 1), "3"))
    keeper.go_on.set()
    await until(lambda: keeper.batches == [["1", "2"], ["3"]])
    await reporter.report(observed(rows(0, 1), "4"))
    assert keeper.batches[-1] == ["4"]


@pytest.mark.parametrize("asked", ["1", "2"])
async def test_who_leaves_doesnt_take_figures_along(asked):
    keeper = Keeper()
    reporter = Reporter(keeper)
    leaving = asyncio.create_task(reporter.report(observed(rows(0, 1), asked)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    keeper.go_on.set()
    await reporter.report(None)
    assert [asked] in keeper.batches
