"""More requests than a server can take: some are refused, at once and politely, and the others get their answers.

The engine takes its time without using any, and holds its rows until more have come than it can take. So a busy machine
changes nothing.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.server import PATIENCE, Server, wait_for
from tests.fault.traffic import PATH, Traffic

REQUESTS = 100
ROOM = 16
BATCH_SECONDS = 0.1
"""With one stream and batches of four, that is 40 rows a second."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_queue_rows=ROOM, streams=1, max_batch_size=4, request_timeout=PATIENCE) as running:
        yield running


@pytest.fixture(scope="module")
def traffic(server: Server) -> Traffic:
    """The server has learned how long batches take, too."""
    learned = Traffic.learn(server.client)
    server.fault(f"slow {BATCH_SECONDS}")
    for number in range(6):
        learned.check(number, server.client.post(PATH, content=learned.photos[number]))
    return learned


def refused(server: Server, slug: str) -> float:
    labels = f'reason="{slug}"'
    return sum(
        n for name, n in server.metrics().items() if name.startswith("condconv_rejected_total") and labels in name
    )


def waiting(server: Server) -> float:
    found = server.metrics()
    return found["condconv_queue_rows"] + found["condconv_rows_in_flight"]


async def held_until(condition: Callable[[], bool], server: Server) -> None:
    """Let no batch end until then."""
    try:
        await asyncio.to_thread(wait_for, condition)
    finally:
        server.fault(f"slow {BATCH_SECONDS}")


async def flood(
    url: str, traffic: Traffic, query: str = "", *, requests: int = REQUESTS
) -> list[tuple[int, httpx.Response]]:
    """Send so many, far more than fit by default, whether or not answers come."""

    async def post(number: int) -> tuple[int, httpx.Response]:
        await asyncio.sleep(number * 0.003)
        number %= len(traffic.photos)
        # One pool for all would take longer to look for free connections than the server takes to answer.
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=False, trust_env=False) as client:
            return number, await client.post(PATH + query, content=traffic.photos[number])

    return await asyncio.gather(*(post(number) for number in range(requests)))


async def test_a_flood(server: Server, traffic: Traffic) -> None:
    server.fault("hold rows")
    answers, _ = await asyncio.gather(
        flood(server.url, traffic),
        held_until(lambda: refused(server, "queue_full") + waiting(server) == REQUESTS, server),
    )
    statuses = Counter(response.status_code for _, response in answers)
    print(f"\n{dict(statuses)}")
    assert set(statuses) == {200, 429}, "each is answered, one way or the other"
    assert statuses[200] > ROOM
    for number, response in answers:
        if response.status_code == 200:
            traffic.check(number, response)
        else:
            assert response.json()["slug"] == "queue_full"
            assert int(response.headers["retry-after"]) == math.ceil(response.json()["retry_after"])
            assert 0 < response.json()["retry_after"] < 5, "16 rows don't take longer"
    samples = server.metrics()
    assert samples["condconv_queue_rows"] == samples["condconv_rows_in_flight"] == 0
    assert refused(server, "queue_full") == statuses[429]
    assert samples["condconv_predicted_wait_seconds"] == 0


async def test_a_flood_with_short_deadlines(server: Server, traffic: Traffic) -> None:
    """Behind requests that have time, for which the engine needs longer than these wait."""
    before = refused(server, "wait_too_long")
    server.fault("hold rows")
    first = asyncio.create_task(flood(server.url, traffic, requests=ROOM))
    await asyncio.to_thread(wait_for, lambda: waiting(server) == ROOM)
    answers, _ = await asyncio.gather(
        flood(server.url, traffic, "&timeout_ms=150"),
        held_until(lambda: refused(server, "wait_too_long") > before, server),
    )
    slugs = Counter(response.json().get("slug", "answered") for _, response in answers)
    print(f"\n{dict(slugs)}")
    assert set(slugs) <= {"answered", "queue_full", "wait_too_long", "deadline_exceeded"}
    assert slugs["wait_too_long"] > 0, "what can be foreseen is refused at once"
    for number, response in (*answers, *await first):
        if response.status_code == 200:
            traffic.check(number, response)
    assert {response.status_code for _, response in await first} == {200}
    traffic.check(0, server.client.post(PATH, content=traffic.photos[0]))


def test_urgent_requests_overtake(server: Server, traffic: Traffic) -> None:
    """Beside a steady crowd of low priority, high priority waits less (medians: a pause holds up few)."""

    async def crowd() -> tuple[list[float], list[float]]:
        limits = httpx.Limits(max_connections=None)
        waits: dict[str, list[float]] = {"low": [], "high": []}
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits, trust_env=False) as client:

            async def ask(priority: str, times: int) -> None:
                for _ in range(times):
                    response = await client.post(f"/predict?priority={priority}", content=traffic.photos[0])
                    (entry,) = response.json()["predictions"]
                    waits[priority].append(entry["timings_ms"]["queue"])

            await asyncio.gather(*(ask("low", 8) for _ in range(14)), ask("high", 16))
        return waits["low"], waits["high"]

    low, high = asyncio.run(crowd())
    wait_of_low, wait_of_high = statistics.median(low), statistics.median(high)
    print(f"\nmedian wait of low priority {wait_of_low:.0f} ms, of high {wait_of_high:.0f} ms")
    assert wait_of_high < wait_of_low
