"""Rows from the cache, rows shared by equal images, and what is left to compute: over the real plane and batcher."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from condconv_serve.domain import MadeRow, Placement, RowAnswer, RowSource, ServedModel
from condconv_serve.domain.caching import CacheUse
from condconv_serve.errors import CorruptImage, DeadlineExceeded, InferenceFailed, QueueFull, ServiceError, WaitTooLong
from condconv_serve.inference.batching import Batcher, Priority
from condconv_serve.inference.cache import RowCache
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.inference.runner import finite_rows
from condconv_serve.inference.sharing import RowSharing
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
from tests.contract.fakes import FakeModels, served_model
from tests.contract.until import until
from tests.contract.virtual_time import virtual_time

MODEL = served_model()
MINE = CacheUse(scope="mine")
CORRUPT, GUILTY, INFINITE = 90, 91, 92
"""Images that can't be decoded, that the engine can't compute, and whose answer isn't finite."""


class Subject:
    """A plane with a cache. Batches wait while `free` is cleared; an image is a number, and so is its answer."""

    def __init__(self, *, cache_bytes: int = 10**6, **limits: int) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.free = asyncio.Event()
        self.free.set()
        self.made, self.computed = list[int](), list[int]()
        self.observed = list[float]()
        self.computing = 0
        self.tallies = Tallies()
        self.cache = RowCache(cache_bytes, metrics=self.metrics)
        self.models = FakeModels(MODEL)
        options = {"streams": 1, "max_batch_size": 4, "max_queue_rows": 8, **limits}
        self.batcher: Any = Batcher(self._run, metrics=self.metrics, **options)  # type: ignore[arg-type]
        self.plane = InferencePlane(
            self.models,
            self.batcher,
            metrics=self.metrics,
            tallies=self.tallies,
            observe=lambda model, row: self.observed.append(float(row.tensors["logits"][0])),
            sharing=RowSharing(self.cache),
        )

    async def _run(self, model: ServedModel, rows: Sequence[Any]) -> Sequence[Any]:
        self.computing += 1
        await self.free.wait()
        self.computing -= 1
        if any(row % 100 == GUILTY for row in rows):
            raise RuntimeError("secret")
        self.computed += rows
        found = [[row if row % 100 != INFINITE else np.inf] for row in rows]
        return finite_rows({"logits": np.array(found, np.float32)})

    def source(self, image: int, digest: bytes | None) -> RowSource:
        async def make() -> MadeRow:
            self.made.append(image)
            await asyncio.sleep(0)
            if image % 100 == CORRUPT:
                raise CorruptImage("It is damaged.")
            row: Any = image
            return MadeRow(row, 0.5, Placement(photo_width=1, photo_height=1, left=image, top=0, width=1, height=1))

        return RowSource(make, digest)

    async def ask(
        self,
        *images: int,
        use: CacheUse | None = MINE,
        model: ServedModel = MODEL,
        priority: Priority = Priority.NORMAL,
        seconds: float = math.inf,
    ) -> list[RowAnswer | ServiceError]:
        sources = [self.source(image, f"{image % 100}".encode()) for image in images]
        deadline = time.monotonic() + seconds
        return await self.plane.infer_each(model, sources, priority=priority, deadline=deadline, cache=use)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"condconv_{name}", {"model": MODEL.name, **labels}) or 0.0

    def results(self) -> dict[str, float]:
        """Answered images by where their answers came from."""
        names = ("hit", "shared", "miss", "bypass")
        return {name: found for name in names if (found := self.count("cache_rows_total", result=name))}

    def queue_rows(self) -> float:
        return self.metrics.registry.get_sample_value("condconv_queue_rows") or 0.0


@contextlib.asynccontextmanager
async def running(**options: int) -> AsyncIterator[Subject]:
    subject = Subject(**options)
    async with asyncio.timeout(20), subject.batcher:
        try:
            yield subject
        finally:
            subject.free.set()  # or a test that fails would never end


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    with virtual_time():
        async with running() as subject:
            yield subject


def values(rows: Sequence[RowAnswer | ServiceError]) -> list[Any]:
    """What was answered, or the error's slug."""
    return [row.slug if isinstance(row, ServiceError) else float(row.tensors["logits"][0]) for row in rows]


def origins(rows: Sequence[RowAnswer | ServiceError]) -> list[Any]:
    return [row.slug if isinstance(row, ServiceError) else row.timings.cache for row in rows]


async def test_an_image_that_comes_again_is_neither_made_nor_computed(subject: Subject) -> None:
    first, second = await subject.ask(7), await subject.ask(7)
    (before,), (after,) = first, second
    assert isinstance(before, RowAnswer)
    assert isinstance(after, RowAnswer)
    assert subject.made == subject.computed == [7]
    assert (before.timings.cached, after.timings.cached) == (False, True)
    assert values(first) == values(second) == [7.0]
    assert (after.placement, after.batch_size) == (before.placement, before.batch_size)
    assert (after.timings.decode, after.timings.queue, after.timings.inference) == (0, 0, 0)
    assert before.timings.decode == 0.5


async def test_what_hits_count_for(subject: Subject) -> None:
    for _ in range(3):
        await subject.ask(7)
    assert subject.results() == {"miss": 1, "hit": 2}
    # Whoever asks what the traffic is like, or who answered it, doesn't mind how.
    assert subject.observed == [7.0] * 3
    assert subject.count("rows_total", outcome="answered", deadline="") == 3
    assert subject.count("rows_accepted_total") == 3
    assert subject.count("version_rows_total", version=MODEL.version) == 3
    # Whoever asks how long a stage takes does.
    stages = {
        stage: subject.metrics.registry.get_sample_value("condconv_stage_seconds_count", {"stage": stage})
        for stage in ("decode", "queue", "inference", "total")
    }
    assert stages == {"decode": 1, "queue": 1, "inference": 1, "total": 3}
    tally = (await subject.tallies.read([(MODEL.name, MODEL.version)]))[0]
    assert (tally.success.count, tally.inference.count, tally.decode.count) == (3, 1, 1)
    assert (tally.cache_hit.count, tally.cache_miss.count) == (2, 1)


async def test_without_use_or_digest_the_cache_is_left_alone(subject: Subject) -> None:
    await subject.ask(7)
    assert origins(await subject.ask(7, use=None)) == [None]
    source = subject.source(7, None)
    for _ in range(2):
        assert origins(await subject.plane.infer_each(MODEL, [source], cache=MINE)) == [None]
    assert subject.computed == [7] * 4
    assert subject.results() == {"miss": 1}
    assert (await subject.tallies.read([(MODEL.name, MODEL.version)]))[0].cache_miss.count == 1


async def test_only_what_is_missing_takes_room() -> None:
    async with running(max_queue_rows=2) as subject:
        await subject.ask(1, 2)
        assert origins(await subject.ask(1, 2, 3, 3, 4)) == ["hit", "hit", "miss", "shared", "miss"]
        assert subject.computed == [1, 2, 3, 4]
        with pytest.raises(QueueFull):
            await subject.ask(1, 5, 6, 7)
        assert subject.made == [1, 2, 3, 4], "a row was made for a refused request"
        assert origins(await subject.ask(5)) == ["miss"], "the refused request left something behind"


async def test_a_full_queue_refuses_no_answer_that_is_there() -> None:
    async with running(max_queue_rows=1) as subject:
        await subject.ask(1)
        subject.free.clear()
        waiting = [asyncio.create_task(subject.ask(2))]
        await until(lambda: subject.computing)
        waiting.append(asyncio.create_task(subject.ask(3)))
        await until(lambda: subject.queue_rows() == 1)
        await subject.plane.check(cache=MINE)  # the body may be one that has its answer
        assert origins(await subject.ask(1)) == ["hit"]
        for stranger in (CacheUse(scope="other"), CacheUse(scope="mine", max_age=0), None):
            with pytest.raises(QueueFull):
                await subject.plane.check(cache=stranger)
        with pytest.raises(QueueFull):
            await subject.ask(4)
        follower = asyncio.create_task(subject.ask(2))
        await asyncio.sleep(0)
        subject.free.set()
        assert origins(await follower) == ["shared"]
        await asyncio.gather(*waiting)


async def test_a_first_image_under_way_may_be_followed_though_the_queue_is_full() -> None:
    async with running(max_queue_rows=1) as subject:
        subject.free.clear()
        leader = asyncio.create_task(subject.ask(1))
        await until(lambda: subject.computing)
        other = asyncio.create_task(subject.ask(2, use=None))
        await until(lambda: subject.queue_rows() == 1)
        await subject.plane.check(cache=MINE)
        subject.free.set()
        await asyncio.gather(leader, other)


async def test_an_answer_that_is_there_is_given_whatever_the_deadline(subject: Subject) -> None:
    await subject.ask(1)
    assert origins(await subject.ask(1, seconds=0)) == ["hit"]
    assert values(await subject.ask(2, seconds=0)) == ["deadline_exceeded"]


async def test_the_rights_of_one_are_not_those_of_another(subject: Subject) -> None:
    subject.free.clear()
    asked = [
        asyncio.create_task(subject.ask(1 + 100 * place, use=CacheUse(scope=scope)))
        for place, scope in enumerate(["a", "b", "a"])
    ]
    await until(lambda: subject.computing)
    subject.free.set()
    a, b, again = await asyncio.gather(*asked)
    assert [values(each) for each in (a, b, again)] == [[1.0], [101.0], [1.0]]
    assert values(await subject.ask(901, use=CacheUse(scope="b"))) == [101.0]


async def test_a_version_loaded_again_is_another_one(subject: Subject) -> None:
    await subject.ask(1)
    again = served_model()
    assert origins(await subject.ask(1, model=again)) == ["miss"]
    subject.cache.drop(MODEL)
    assert origins(await subject.ask(1)) == ["miss"]
    assert origins(await subject.ask(1, model=again)) == ["hit"]


@pytest.mark.parametrize("image", [CORRUPT, GUILTY, INFINITE])
async def test_errors_are_not_kept(subject: Subject, image: int) -> None:
    for _ in range(2):
        (error,) = await subject.ask(image)
        assert isinstance(error, ServiceError)
    assert subject.made == [image] * 2
    assert len(subject.cache) == 0
    assert subject.results() == {}


@pytest.mark.parametrize("image", [CORRUPT, GUILTY, INFINITE])
async def test_equal_images_under_way_share_an_error(subject: Subject, image: int) -> None:
    subject.free.clear()
    asked = [asyncio.create_task(subject.ask(image)) for _ in range(3)]
    await until(lambda: subject.made)
    subject.free.set()
    found = [error for (error,) in await asyncio.gather(*asked)]
    assert len({repr(error) for error in found}) == 1
    assert isinstance(found[0], CorruptImage | InferenceFailed)
    assert len({id(error) for error in found}) == 3, "each sender gets an error of its own"
    assert subject.made == [image]


async def test_equal_images_under_way_are_computed_once(subject: Subject) -> None:
    subject.free.clear()
    asked = [asyncio.create_task(subject.ask(1)) for _ in range(50)]  # the queue has room for 8
    await until(lambda: subject.computing)
    subject.free.set()
    found = await asyncio.gather(*asked)
    assert Counter(origins([row for (row,) in found])) == {"miss": 1, "shared": 49}
    assert {value for each in found for value in values(each)} == {1.0}
    assert subject.computed == [1]
    assert subject.observed == [1.0] * 50
    assert not any(isinstance(row, RowAnswer) and row.timings.decode for (row,) in found[1:])


@pytest.mark.parametrize("seconds", [math.inf, 0.05], ids=["who leaves", "who waits for less long"])
async def test_one_who_leads_takes_nobody_along(subject: Subject, seconds: float) -> None:
    subject.free.clear()
    busy = asyncio.create_task(subject.ask(5))
    await until(lambda: subject.computing)
    leader = asyncio.create_task(subject.ask(1, seconds=seconds))
    await until(lambda: subject.queue_rows() == 1)
    followers = [asyncio.create_task(subject.ask(1)) for _ in range(3)]
    await asyncio.sleep(0.001)
    assert subject.queue_rows() == 1, "followers took room"
    if seconds == math.inf:
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
    else:
        assert values(await leader) == ["deadline_exceeded"]
    await until(lambda: subject.queue_rows() == 1)  # one of them leads now
    subject.free.set()
    found = await asyncio.gather(*followers)
    assert Counter(origins([row for (row,) in found])) == {"miss": 1, "shared": 2}
    assert subject.computed == [5, 1]
    await busy


async def test_one_who_follows_may_leave_or_be_late(subject: Subject) -> None:
    subject.free.clear()
    leader = asyncio.create_task(subject.ask(1))
    await until(lambda: subject.computing)
    leaving, late, staying = (
        asyncio.create_task(subject.ask(1, seconds=seconds)) for seconds in (math.inf, 0.01, math.inf)
    )
    await asyncio.sleep(0)
    leaving.cancel()
    (error,) = await late
    assert isinstance(error, DeadlineExceeded)
    subject.free.set()
    assert origins(await leader) == ["miss"]
    assert origins(await staying) == ["shared"]
    assert subject.count("rows_total", outcome="cancelled", deadline="") == 1
    assert subject.count("rows_accepted_total") == 4


async def test_a_request_given_up_before_it_began_leads_nobody(subject: Subject) -> None:
    subject.free.clear()
    leader = asyncio.create_task(subject.ask(1, 2))  # rows of one request are made by tasks of their own
    await asyncio.sleep(0)  # it leads, but its rows are not being made yet
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    assert subject.made == []
    subject.free.set()
    assert origins(await subject.ask(1)) == ["miss"]


async def test_the_urgent_do_not_wait_for_those_that_can_wait(subject: Subject) -> None:
    subject.free.clear()
    busy = asyncio.create_task(subject.ask(5))
    await until(lambda: subject.computing)
    low = asyncio.create_task(subject.ask(1, priority=Priority.LOW))
    await until(lambda: subject.queue_rows() == 1)
    high = asyncio.create_task(subject.ask(1, priority=Priority.HIGH))
    await until(lambda: subject.queue_rows() == 2)
    normal = asyncio.create_task(subject.ask(1))
    await asyncio.sleep(0)
    subject.free.set()
    assert [origins(each) for each in await asyncio.gather(low, high, normal)] == [["miss"], ["miss"], ["shared"]]
    await busy


async def test_no_store_and_no_cache(subject: Subject) -> None:
    secret = CacheUse(scope="mine", store=False)
    fresh = CacheUse(scope="mine", max_age=0)
    assert origins(await subject.ask(1, use=secret)) == ["miss"]
    assert len(subject.cache) == 0
    assert origins(await subject.ask(1, use=fresh)) == ["bypass"]
    assert origins(await subject.ask(1, use=secret)) == ["hit"]  # what is kept already may be used
    assert values(await subject.ask(101, use=fresh)) == [101.0]
    assert values(await subject.ask(201)) == [101.0], "the newer answer replaces the older one"
    subject.free.clear()
    leader = asyncio.create_task(subject.ask(2, use=secret))
    await until(lambda: subject.computing)
    other = asyncio.create_task(subject.ask(2))
    await until(lambda: subject.queue_rows() == 1)
    subject.free.set()
    assert origins(await leader) == origins(await other) == ["miss"], "what isn't kept isn't shared either"


@pytest.mark.parametrize("max_age", [math.inf, 60.0])
async def test_who_takes_answers_from_the_cache_alone_has_nothing_computed(subject: Subject, max_age: float) -> None:
    only = CacheUse(scope="mine", only=True, max_age=max_age)
    await subject.ask(1)
    assert origins(await subject.ask(1, 2, 2, use=only)) == ["hit", "not_cached", "not_cached"]
    assert origins(await subject.ask(1, use=CacheUse(scope="other", only=True))) == ["not_cached"]
    assert origins(await subject.ask(1, use=CacheUse(scope="mine", only=True, max_age=0))) == ["not_cached"]
    assert origins(await subject.ask(2)) == ["miss"], "it leads nobody"
    assert subject.made == [1, 2]
    assert subject.count("rows_total", outcome="not_cached", deadline="") == 4
    (nameless,) = await subject.plane.infer_each(MODEL, [subject.source(1, None)], cache=only)
    assert values([nameless]) == ["not_cached"]


async def test_who_takes_answers_from_the_cache_alone_needs_no_room_and_waits_for_nobody() -> None:
    only = CacheUse(scope="mine", only=True)
    async with running(max_queue_rows=1) as subject:
        subject.free.clear()
        waiting = [asyncio.create_task(subject.ask(1))]
        await until(lambda: subject.computing)
        waiting.append(asyncio.create_task(subject.ask(2)))
        await until(lambda: subject.queue_rows() == 1)
        await subject.plane.check(cache=CacheUse(scope="other", only=True))
        assert origins(await subject.ask(1, 2, 3, use=only)) == ["not_cached"] * 3
        subject.free.set()
        await asyncio.gather(*waiting)
        assert origins(await subject.ask(1, 2, use=only)) == ["hit", "hit"]


async def test_a_cache_that_is_too_small_still_shares() -> None:
    async with running(cache_bytes=100) as subject:
        subject.free.clear()
        asked = [asyncio.create_task(subject.ask(1)) for _ in range(2)]
        await until(lambda: subject.computing)
        subject.free.set()
        await asyncio.gather(*asked)
        assert subject.computed == [1]
        assert origins(await subject.ask(1)) == ["miss"]


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.lists(st.sampled_from([1, 2, 3, CORRUPT, GUILTY, INFINITE]), min_size=1, max_size=3),
            st.integers(1, 2),
            st.sampled_from(Priority),
            st.sampled_from([math.inf, math.inf, 0.002]),
            st.tuples(st.sampled_from([math.inf, math.inf, 0.0]), st.booleans()),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.integers(1, 5)),
        st.tuples(st.just("drop")),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=50)
@given(steps=STEPS, max_queue_rows=st.integers(1, 6), cache_bytes=st.sampled_from([100, 2500, 10**6]))
def test_whatever_the_order(steps: list[Any], max_queue_rows: int, cache_bytes: int) -> None:
    """Every row gets its own image's answer, computed for its own scope, and nothing is left behind."""

    async def play() -> None:
        async with running(max_queue_rows=max_queue_rows, cache_bytes=cache_bytes) as subject:
            asked = list[tuple[list[int], int, asyncio.Task[Any]]]()
            for step in steps:
                match step:
                    case "ask", images, scope, priority, seconds, (max_age, store):
                        use = CacheUse(scope=str(scope), max_age=max_age, store=store)
                        marked = [100 * scope + image for image in images]  # what is computed bears its scope
                        work = subject.ask(*marked, use=use, priority=priority, seconds=seconds)
                        asked.append((marked, scope, asyncio.create_task(work)))
                    case "cancel", place if place < len(asked):
                        asked[place][2].cancel()
                    case "turn", turns:
                        for _ in range(turns):
                            await asyncio.sleep(0)
                    case ["drop"]:
                        subject.cache.drop(MODEL)
            for marked, _, task in asked:
                with contextlib.suppress(asyncio.CancelledError, QueueFull, WaitTooLong):
                    for image, row in zip(marked, await task, strict=True):
                        if isinstance(row, RowAnswer):
                            assert float(row.tensors["logits"][0]) == image
                        else:
                            wrong = image % 100 in (CORRUPT, GUILTY, INFINITE)
                            assert wrong or row.slug in ("deadline_exceeded", "queue_full", "wait_too_long"), row
            assert subject.queue_rows() == 0
            assert subject.cache.nbytes <= cache_bytes
            free = CacheUse(scope="1")
            await subject.plane.check(cache=free)
            assert values(await subject.ask(101, use=free)) == [101.0], "an image is stuck"
            samples = [sample for family in subject.metrics.rows.collect() for sample in family.samples]
            done = sum(sample.value for sample in samples if sample.name == "condconv_rows_total")
            assert done == subject.count("rows_accepted_total")

    asyncio.run(play())


@pytest.mark.parametrize("use", [None, MINE])
async def test_a_row_that_can_not_be_made_gives_back_its_room_before_its_request_ends(use: CacheUse | None) -> None:
    go_on = asyncio.Event()

    async def make() -> MadeRow:
        await go_on.wait()
        raise CorruptImage("It is damaged, too.")

    async with running() as subject:
        sources = [subject.source(CORRUPT, b"90"), RowSource(make, b"1")]
        asked = asyncio.create_task(subject.plane.infer_each(MODEL, sources, cache=use))
        try:
            await until(lambda: subject.queue_rows() == 1)
            assert not asked.done()
        finally:
            go_on.set()
        assert [str(row) for row in await asked] == ["It is damaged.", "It is damaged, too."]
        assert subject.queue_rows() == 0


@pytest.mark.parametrize("use", [None, MINE])
async def test_who_leaves_after_a_row_has_failed_leaves_nothing_to_the_garbage_collector(use: CacheUse | None) -> None:
    async def fails(photo: Any) -> MadeRow:
        raise CorruptImage("It is damaged.")

    async def waits() -> MadeRow:
        return await asyncio.Future[MadeRow]()

    gc.collect()
    gc.disable()
    try:
        async with running() as subject:
            photo = np.zeros(1)
            seen = weakref.ref(photo)
            sources = [RowSource(partial(fails, photo), b"1"), RowSource(waits, b"2")]
            asked = asyncio.create_task(subject.plane.infer_each(MODEL, sources, cache=use))
            del photo, sources
            try:
                await until(lambda: subject.count("rows_total", outcome="corrupt_image", deadline="") == 1)
            finally:
                asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked
            del asked
            await until(lambda: seen() is None)
    finally:
        gc.enable()
