import asyncio
import contextlib
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import LOGITS, ROUTING, Copies, MadeRow, RowAnswer, ServedModel, Timings, rows_of
from condconv_serve.shadow import traffic
from condconv_serve.shadow.pauses import FAILURES
from condconv_serve.shadow.traffic import Shadow
from condconv_serve.telemetry.metrics import Metrics
from tests import pictures
from tests.contract.fakes import (
    FakeModels,
    FunctionEngine,
    ShadeEngine,
    detector_info,
    model_info,
    served_model,
)
from tests.contract.until import until
from tests.contract.virtual_time import let_pass

PEAR, CLASSES = "pear", 6


class Models(FakeModels):
    """Counts what is held."""

    def __init__(self, *models):
        super().__init__(*models)
        self.held = 0

    @contextlib.contextmanager
    def lease(self, name=None, version=None, *, key=None):
        with self.hold(self.get(name, version, key=key)) as model:
            yield model

    @contextlib.contextmanager
    def hold(self, model):
        self.held += 1
        try:
            yield model
        finally:
            self.held -= 1


class Callers:
    """The callers' batcher."""

    saturated = False

    def __init__(self):
        self.idle = asyncio.Event()
        self.idle.set()
        self.asked = 0

    async def until_idle(self):
        self.asked += 1
        await self.idle.wait()


class Place:
    """A shadow beside a version 1 that answers, without what answers."""

    def __init__(self, *others, stall_timeout=30.0):
        self.ours = version("1")
        self.models = Models(self.ours, *others)
        self.metrics = Metrics(CollectorRegistry())
        self.callers, self.observed = Callers(), []
        self.shadow = Shadow(
            self.models,
            stall_timeout=stall_timeout,
            max_pixels=10**6,
            metrics=self.metrics,
            callers=self.callers,
            observe=lambda model, row: self.observed.append(model.version),
        )

    def offer(self, shade=3, to=("2",), row=None, **source):
        row = np.full((32, 32, 3), shade, np.uint8) if row is None else row
        tensors = ShadeEngine(classes=CLASSES)(np.asarray(row, np.uint8)[None])
        answer = RowAnswer(
            tensors={name: values[0] for name, values in tensors.items()},
            timings=Timings(decode=0, queue=0, inference=0, total=0),
            batch_size=1,
        )
        self.shadow.offer(self.ours, MadeRow(row, copies=Copies(to=to, **source)), answer)

    async def counts(self, images=1, *, shadow="2"):
        """The figures of a version, once so many images have an outcome."""
        async with asyncio.timeout(20):
            while True:
                for found in await self.shadow.read(PEAR):
                    if found.shadow == shadow and sum(found.outcomes.values()) >= images:
                        await asyncio.sleep(0)  # the copy's task ends
                        return found
                await asyncio.sleep(0.005)

    def sample(self, name, **labels):
        pair = {"model": PEAR, "version": "1", "shadow": "2"}
        return self.metrics.registry.get_sample_value(name, {**pair, **labels})


def version(number="2", engine=None, **info):
    return served_model(model_info(PEAR, number, classes=CLASSES, **info), engine or ShadeEngine(classes=CLASSES))


def engine(change):
    """A version whose tensors are changed."""

    def compute(rows, stream):
        return change(dict(ShadeEngine(classes=CLASSES).compute(rows, stream)))

    return FunctionEngine(compute)


async def test_a_version_that_agrees():
    place = Place(version())
    async with place.shadow:
        for shade in range(5):
            place.offer(shade)
        counts = await place.counts(5)
    assert dict(counts.outcomes) == {"compared": 5}
    assert (counts.agreement, counts.distance, counts.routing) == (5, 0, {"block_1": 0, "block_2": 0})
    assert place.observed == ["2"] * 5
    assert place.models.held == 0
    assert place.sample("condconv_shadow_rows_total", outcome="compared") == 5
    assert place.sample("condconv_shadow_agreement_total") == 5
    assert place.sample("condconv_shadow_distance_count") == 5
    assert place.sample("condconv_shadow_routing_distance_sum") == 0


async def test_no_model_is_written_out_for_a_copy(monkeypatch):
    """All labels of a model in words would take the callers' event loop milliseconds for each batch."""
    written = []
    for how in ("__repr__", "__str__"):
        monkeypatch.setattr(ServedModel, how, lambda model: written.append(model) or "", raising=False)
    place = Place(version())
    async with place.shadow:
        place.offer()
        assert dict((await place.counts()).outcomes) == {"compared": 1}
    assert not written


async def test_a_version_that_differs():
    rolled = engine(lambda t: t | {LOGITS: np.roll(t[LOGITS], 1, axis=1), ROUTING: t[ROUTING] + np.float32(0.25)})
    place = Place(version(engine=rolled))
    async with place.shadow:
        place.offer()
        counts = await place.counts()
    share = np.exp(5) / (np.exp(5) + CLASSES - 1)
    assert counts.agreement == 0
    assert counts.distance == pytest.approx(share - np.exp(-5) * share, rel=1e-5)
    assert counts.routing == {"block_1": pytest.approx(0.25), "block_2": pytest.approx(0.25)}
    assert place.sample("condconv_shadow_routing_distance_sum") == pytest.approx(0.25)


def raises(tensors):
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("other", "outcome", "says"),
    [
        (None, "not_served", "not served in version '2'"),
        (served_model(detector_info(PEAR, "2")), "other_task", "Version 2 is for detection"),
        (version(engine=engine(raises)), "failed", "could not compute"),
        (version(engine=engine(lambda t: t | {LOGITS: t[LOGITS] * np.nan})), "not_finite", "not finite"),
        (version(image_size=64), "other_input", "crops or resizes images in another way"),
    ],
)
async def test_why_an_image_is_not_compared(other, outcome, says):
    place = Place(*[other] if other else [])
    async with place.shadow:
        place.offer()
        counts = await place.counts()
    assert dict(counts.outcomes) == {outcome: 1}
    assert says in counts.problem
    assert place.observed == []
    assert place.sample("condconv_shadow_rows_total", outcome=outcome) == 1
    assert place.models.held == 0


async def test_an_image_is_decoded_again_for_a_version_that_crops_in_another_way():
    place = Place(version(image_size=64))
    async with place.shadow:
        place.offer(200, image=pictures.png(np.full((70, 90, 3), 200, np.uint8)))
        place.offer(200, image=b"no image")
        counts = await place.counts(2)
    assert dict(counts.outcomes) == {"compared": 1, "failed": 1}
    assert counts.agreement == 1


async def test_pixels_are_taken_as_they_are_where_the_size_fits():
    ours = model_info().preprocessing
    place = Place(version(preprocessing=replace(ours, transform="central")), version("3", image_size=64))
    async with place.shadow:
        place.offer(row=np.full((32, 32, 3), 7.4, np.float32), to=("2", "3"), is_pixels=True)
        assert (await place.counts()).agreement == 1
        assert dict((await place.counts(shadow="3")).outcomes) == {"other_input": 1}


async def test_the_version_that_answered_gets_no_copy():
    place = Place(version())
    async with place.shadow:
        place.offer(to=("1",))
        assert await place.shadow.read(PEAR) == []


async def test_copies_give_way_to_callers_and_are_bounded(monkeypatch):
    monkeypatch.setattr(traffic, "MAX_ROWS", 3)
    monkeypatch.setattr(traffic, "WAIT_SECONDS", 60)
    begun, going = threading.Event(), threading.Event()
    place = Place(version(engine=engine(lambda t: (begun.set(), going.wait(60)) and t)), stall_timeout=3600)
    async with place.shadow:
        place.callers.saturated = True
        place.offer()
        place.callers.saturated = False
        for _ in range(5):
            place.offer()
        assert await asyncio.to_thread(begun.wait, 20)
        let_pass(60, monkeypatch)
        counts = await place.counts(6)
        assert dict(counts.outcomes) == {"busy": 1, "full": 2, "late": 3}
        assert place.shadow.busy
        going.set()
        place.offer()
        counts = await place.counts(7)
        assert counts.compared == 1
        monkeypatch.setattr(traffic, "MAX_BYTES", 32 * 32 * 3 - 1)
        place.offer()
        assert (await place.counts(8)).outcomes["full"] == 3
    assert not place.shadow.busy


async def test_no_copy_is_computed_while_callers_keep_the_streams_busy():
    other = version()
    place = Place(other)
    place.callers.idle.clear()
    async with place.shadow:
        place.offer()
        place.offer()
        await asyncio.sleep(0.05)
        assert not other.engine.calls
        place.callers.idle.set()
        assert (await place.counts(2)).compared == 2


async def test_copies_that_waited_for_callers_to_the_end_say_so(monkeypatch):
    monkeypatch.setattr(traffic, "WAIT_SECONDS", 60)
    place = Place(version())
    place.callers.idle.clear()
    async with place.shadow:
        for _ in range(6):
            place.offer()
        await until(lambda: place.callers.asked)
        let_pass(60, monkeypatch)
        assert dict((await place.counts(6)).outcomes) == {"busy": 6}
        place.callers.idle.set()
        place.offer()
        assert (await place.counts(7)).compared == 1


async def test_a_version_that_fails_again_and_again_is_left_alone_until_it_is_another_one():
    place = Place(version(engine=engine(raises)))
    async with place.shadow:
        for number in range(FAILURES):
            place.offer()
            await place.counts(number + 1)
        place.offer()
        assert dict((await place.counts(FAILURES + 1)).outcomes) == {"failed": FAILURES, "paused": 1}
        place.models.replace(version())
        place.shadow.forget(PEAR, "2")
        assert await place.shadow.read(PEAR) == []
        assert place.sample("condconv_shadow_rows_total", outcome="failed") is None
        place.offer()
        assert dict((await place.counts()).outcomes) == {"compared": 1}


async def test_a_version_that_hangs_is_left_alone_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(traffic, "WAIT_SECONDS", 3600)
    begun, leave = threading.Event(), threading.Event()
    hangs = engine(lambda t: (begun.set(), leave.wait(60)) and t)
    place = Place(version(engine=hangs), version("3"), stall_timeout=60)
    async with place.shadow:
        place.offer()
        assert await asyncio.to_thread(begun.wait, 20)
        let_pass(60, monkeypatch)
        assert dict((await place.counts()).outcomes) == {"failed": 1}
        place.offer()
        assert dict((await place.counts(2)).outcomes) == {"failed": 1, "paused": 1}
        place.offer(to=("3",))
        assert dict((await place.counts(shadow="3")).outcomes) == {"compared": 1}
    assert place.models.held == 1  # the engine still computes
    assert place.shadow.busy
    assert place.metrics.registry.get_sample_value("condconv_stream_stalls_total") == 0  # none of the callers'
    leave.set()


async def test_a_hang_is_told_even_if_no_copy_has_waited_for_its_end(monkeypatch):
    begun, leave = threading.Event(), threading.Event()
    place = Place(version(engine=engine(lambda t: (begun.set(), leave.wait(60)) and t)), stall_timeout=60)
    async with place.shadow:
        place.offer()
        assert await asyncio.to_thread(begun.wait, 20)
        let_pass(traffic.WAIT_SECONDS, monkeypatch)
        assert dict((await place.counts()).outcomes) == {"late": 1}
        let_pass(60, monkeypatch)
        async with asyncio.timeout(20):
            while (await place.counts()).problem != "The engine gave no answer in 60 s.":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        place.offer()
        assert dict((await place.counts(2)).outcomes) == {"late": 1, "paused": 1}
    leave.set()


async def test_nothing_is_computed_for_a_version_that_has_gone():
    other = version()
    place = Place(other)
    async with place.shadow:
        place.offer()
        place.shadow.forget(PEAR, "1")
        place.offer()
        assert (await place.counts()).compared == 1
    assert sum(shape[0] * times for (shape, _), times in other.engine.calls.items()) == 1


async def test_leaving_drops_what_waits(monkeypatch):
    monkeypatch.setattr(traffic, "_SECONDS_TO_END", 60)
    begun, leave = threading.Event(), threading.Event()
    place = Place(version(engine=engine(lambda t: (begun.set(), leave.wait(20)) and t)))
    async with place.shadow:
        place.offer()
        await asyncio.to_thread(begun.wait, 20)
        for _ in range(10):
            place.offer()
        threading.Timer(0.1, leave.set).start()
    place.offer()
    assert not place.shadow.busy
    assert dict((await place.shadow.read(PEAR))[0].outcomes) == {}


async def test_a_row_whose_memory_is_used_again_is_kept():
    begun, leave = threading.Event(), threading.Event()
    place = Place(version(engine=engine(lambda t: (begun.set(), leave.wait(20)) and t)))
    memory = np.full((1, 32, 32, 3), 4, np.uint8)
    async with place.shadow:
        place.offer(1)  # holds up the others
        await asyncio.to_thread(begun.wait, 20)
        place.offer(row=memory[0])
        memory[:] = 5
        leave.set()
        assert (await place.counts(2)).agreement == 2


async def test_offering_never_raises(caplog):
    place = Place(version())
    async with place.shadow:
        place.offer(to=("2",), row=np.zeros((32, 32, 3), np.uint8))
        place.shadow.offer(place.ours, MadeRow(None, copies=Copies(to=("2",))), None)
    assert "a copy of an image for pear was lost" in caplog.text


async def test_a_waiting_copy_holds_its_answer_but_not_that_of_its_batch():
    place = Place(version())
    place.callers.idle.clear()
    batch = {LOGITS: np.zeros((8, CLASSES), np.float32), "features": np.zeros((8, 10_000), np.float32)}
    arrays = [weakref.ref(values) for values in batch.values()]
    answer = RowAnswer(
        tensors={**rows_of(batch)[0], ROUTING: np.zeros((2, 4), np.float32)},
        timings=Timings(decode=0, queue=0, inference=0, total=0),
        batch_size=8,
    )
    row = np.zeros((32, 32, 3), np.uint8)
    async with place.shadow:
        place.shadow.offer(place.ours, MadeRow(row, copies=Copies(to=("2",))), answer)
        del batch, answer
        assert [array() for array in arrays] == [None, None]
        place.callers.idle.set()
        assert (await place.counts()).compared == 1


async def test_answers_count_among_the_bytes_that_copies_hold(monkeypatch):
    place = Place(version())
    place.callers.idle.clear()
    row = 32 * 32 * 3
    async with place.shadow:
        monkeypatch.setattr(traffic, "MAX_BYTES", 2 * row)
        place.offer()
        place.offer()
        assert dict((await place.counts()).outcomes) == {"full": 1}
        place.callers.idle.set()
        assert (await place.counts(2)).compared == 1
