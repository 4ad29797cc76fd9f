"""What every front gets from the gatekeeper, the plane and the middleware, without a line of its own."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from condconv_serve.errors import ServiceError
from tests.contract import npz_front
from tests.contract.fronts import FRONTS, Ask, House, opened
from tests.contract.until import until

Opened = tuple[House, Ask]


@pytest.fixture(params=list(FRONTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def front(name: str) -> AsyncIterator[Opened]:
    async with opened(name) as found:
        yield found


def test_a_front_is_small() -> None:
    assert len(Path(npz_front.__file__).read_text().splitlines()) <= 60


async def test_it_answers(front: Opened) -> None:
    _, ask = front
    heard = await ask(1, 8, 3)
    assert (heard.status, heard.slug, heard.classes) == (200, None, [1, 2, 3])


async def test_its_requests_ride_together(front: Opened) -> None:
    house, ask = front
    house.free.clear()
    first = asyncio.create_task(ask(1))
    await until(lambda: house.read("condconv_rows_in_flight") == 1)
    others = [asyncio.create_task(ask(shade)) for shade in (2, 3, 4)]
    await until(lambda: house.batcher.submitted == 4)
    house.free.set()
    heard = await asyncio.gather(first, *others)
    assert [answer.classes for answer in heard] == [[1], [2], [3], [4]]
    assert [sorted(batch) for batch in house.batches] == [[1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("key", "status", "slug"),
    [(None, 401, "unauthenticated"), ("wrong", 401, "unauthenticated"), ("suspended", 403, "forbidden")],
)
async def test_keys(front: Opened, key: str | None, status: int, slug: str) -> None:
    house, ask = front
    heard = await ask(1, key=key)
    assert (heard.status, heard.slug) == (status, slug)
    assert house.batches == []


async def test_rates(front: Opened) -> None:
    _, ask = front
    heard = [await ask(1, key="slow") for _ in range(3)]
    assert [(answer.status, answer.slug) for answer in heard] == [(200, None), (200, None), (429, "rate_limited")]
    assert (await ask(1)).status == 200, "other keys go on"


@pytest.mark.parametrize("name", sorted(set(FRONTS) - {"npz", "grpc"}), indirect=True)  # which have rows of their own
async def test_the_response_cache(name: str) -> None:
    async with opened(name, cache_bytes=10**6) as (house, ask):
        heard = [
            await ask(1),
            await ask(1),
            await ask(1, 2, 2),
            await ask(2, 3),
            await ask(1, key="bob"),  # his own rights, so his own answers
            await ask(1, headers={"Cache-Control": "no-cache"}),
            await ask(4, headers={"Cache-Control": "max-age=9, no-store"}),
            await ask(4, headers={"Cache-Control": "no-store"}),
        ]
        assert [(answer.status, answer.classes) for answer in heard] == [
            *((200, classes) for classes in ([1], [1], [1, 2, 2], [2, 3])),
            *((200, classes) for classes in ([1], [1], [4], [4])),
        ]
        assert [answer.cache for answer in heard] == [
            "condconv-serve; fwd=miss",
            "condconv-serve; hit",
            'condconv-serve; fwd=partial; detail="2 of 3 images"',
            'condconv-serve; fwd=partial; detail="1 of 2 images"',
            "condconv-serve; fwd=miss",
            "condconv-serve; fwd=request",
            "condconv-serve; fwd=miss",
            "condconv-serve; fwd=miss",
        ]
        assert house.batches == [[1], [2], [3], [1], [1], [4], [4]]
        tally = (await house.tallies.read([("fake", "1")]))[0]
        assert (tally.cache_hit.count, tally.cache_miss.count, tally.success.count) == (4, 7, 8)


@pytest.mark.parametrize("name", sorted(set(FRONTS) - {"npz", "grpc"}), indirect=True)
async def test_a_full_queue_refuses_no_answer_from_the_cache(name: str) -> None:
    async with opened(name, cache_bytes=10**6, max_queue_rows=1) as (house, ask):
        await ask(1)
        house.free.clear()
        waiting = [asyncio.create_task(ask(2))]
        await until(lambda: house.read("condconv_rows_in_flight") == 1)
        waiting.append(asyncio.create_task(ask(3)))
        await until(lambda: house.read("condconv_queue_rows") == 1)
        assert (await ask(1)).cache == "condconv-serve; hit"
        assert (await ask(4)).slug == "queue_full"
        assert (await ask(1, key="bob")).slug == "queue_full"
        house.free.set()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("name", sorted(set(FRONTS) - {"npz", "grpc"}), indirect=True)
async def test_answers_from_the_cache_alone(name: str) -> None:
    only = {"Cache-Control": "only-if-cached"}
    async with opened(name, cache_bytes=10**6) as (house, ask):
        await ask(1)
        heard = [await ask(1, headers=only), await ask(2, headers=only)]
        assert [(answer.status, answer.slug) for answer in heard] == [(200, None), (504, "not_cached")]
        assert heard[0].cache == "condconv-serve; hit"
        assert house.batches == [[1]]
        # Nothing is wrong with the service, so it counts as the caller's own doing. Callers may hear of it first.
        await until(partial(house.read, "condconv_rejected_total", reason="not_cached", deadline="caller"))
        assert house.read("condconv_rejected_total", reason="not_cached", deadline="caller") == 1


@pytest.mark.parametrize("name", sorted(set(FRONTS) - {"npz", "grpc"}), indirect=True)
async def test_without_a_cache_there_are_no_answers_from_it(name: str) -> None:
    async with opened(name) as (house, ask):
        heard = await ask(1, headers={"Cache-Control": "only-if-cached"})
        assert (heard.status, heard.slug, house.batches) == (504, "not_cached", [])


async def test_without_a_cache_nothing_is_said_of_one(front: Opened) -> None:
    _, ask = front
    assert [(await ask(1)).cache for _ in range(2)] == [None, None]


async def test_readiness(name: str) -> None:
    async with opened(name, ready=False) as (house, ask):
        heard = await ask(1)
        assert (heard.status, heard.slug) == (503, "not_ready")
        house.readiness.loaded()
        assert (await ask(1)).status == 200


async def test_deadlines(front: Opened, name: str) -> None:
    house, ask = front
    house.free.clear()
    heard = await ask(1, timeout_ms=50)
    assert (heard.status, heard.slug) == (504, "deadline_exceeded")
    route = FRONTS[name].route
    for counter, labels in (
        (
            "condconv_requests_total",
            {"front": FRONTS[name].protocol or name, "route": route, "method": "POST", "code": "504"},
        ),
        ("condconv_rejected_total", {"reason": "deadline_exceeded"}),
        ("condconv_rows_total", {"model": "fake", "outcome": "deadline_exceeded"}),
    ):
        await until(partial(house.read, counter, **labels, deadline="caller"))  # callers may hear of it first
        assert house.read(counter, **labels, deadline="caller") == 1, counter
        assert house.read(counter, **labels, deadline="service") in (None, 0), counter
    await until(partial(house.read, "condconv_stage_seconds_count", stage="total"))
    assert house.read("condconv_stage_seconds_count", stage="total") == 1, "it took that long, whoever gave up"
    house.free.set()
    assert (await ask(2)).classes == [2]
    heard = await ask(1, timeout_ms=61_000)  # longer than the server lets anybody wait
    assert heard.slug == ("invalid_parameter" if FRONTS[name].says_timeout else None)


async def test_priorities(front: Opened) -> None:
    house, ask = front
    house.free.clear()
    first = asyncio.create_task(ask(1))
    await until(lambda: house.read("condconv_rows_in_flight") == 1)
    waiting = [asyncio.create_task(ask(20, 20, 20, 20, priority="low"))]
    await until(lambda: house.batcher.submitted == 5)
    waiting.append(asyncio.create_task(ask(30, 30, 30, 30, priority="high")))
    await until(lambda: house.batcher.submitted == 9)
    house.free.set()
    await asyncio.gather(first, *waiting)
    assert house.batches == [[1], [30] * 4, [20] * 4]
    assert (await ask(1, priority="urgent")).slug == "invalid_parameter"


async def test_a_full_queue(name: str) -> None:
    async with opened(name, max_queue_rows=2) as (house, ask):
        heard = await ask(1, 2, 3)
        assert heard.slug == "queue_full"
        assert house.read("condconv_rows_accepted_total", model="fake") in (None, 0)
        assert (await ask(1, 2)).classes == [1, 2]


async def test_an_unknown_model(front: Opened) -> None:
    _, ask = front
    assert (await ask(1, model="other")).slug == "model_not_found"


async def test_metrics_and_request_ids(front: Opened, name: str) -> None:
    house, ask = front
    route, protocol = FRONTS[name].route, FRONTS[name].protocol or name
    heard = await ask(1, 2, headers={"X-Request-Id": "mine"})
    assert heard.request_id == "mine"
    refused = await ask(1, key=None)
    assert refused.request_id != ""
    for code in ("200", "401"):
        labels = {"front": protocol, "route": route, "method": "POST", "code": code}
        await until(partial(house.read, "condconv_requests_total", **labels))  # callers may hear of it first
        assert house.read("condconv_requests_total", **labels) == 1
    assert house.read("condconv_rejected_total", reason="unauthenticated") == 1
    assert house.read("condconv_rows_total", model="fake", outcome="answered") == 2
    assert house.read("condconv_version_rows_total", model="fake", version="1") == 2


async def test_a_client_that_leaves_takes_its_rows_along(front: Opened) -> None:
    house, ask = front
    house.free.clear()
    first = asyncio.create_task(ask(1))
    await until(lambda: house.read("condconv_rows_in_flight") == 1)
    leaving = asyncio.create_task(ask(2, 3))
    await until(lambda: house.batcher.submitted == 3)
    leaving.cancel()
    await until(lambda: house.read("condconv_queue_rows") == 0)
    house.free.set()
    assert (await first).classes == [1]
    assert house.batches == [[1]]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """What the block makes must go without the garbage collector, which a service lets look at old objects rarely."""
    gc.freeze()  # what is there already need not be looked at
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, (ServiceError, asyncio.CancelledError))]
        assert left == [], "they hold the bodies of their requests"
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


async def test_a_refused_request_is_forgotten(front: Opened) -> None:
    house, ask = front
    house.free.clear()
    with nothing_left_behind():
        assert (await ask(1, timeout_ms=50)).slug == "deadline_exceeded"
    house.free.set()
    with nothing_left_behind():
        assert (await ask(1, priority="x")).slug == "invalid_parameter"
        assert (await ask(1, model="nobody")).slug == "model_not_found"
        assert (await ask(1, key=None)).slug == "unauthenticated"
