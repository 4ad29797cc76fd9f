"""More requests than a server can take: some are refused, at once and politely, and the others get their answers.

The engine takes its time without using any, so a busy machine changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.server import Server, sample_name
from tests.fault.traffic import PATH, Traffic

REQUESTS = 100
BATCH_SECONDS = 0.1
"""With one stream and batches of four, that is 40 rows a second."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_queue_rows=16, streams=1, max_batch_size=4) as running:
        yield running


@pytest.fixture(scope="module")
def traffic(server: Server) -> Traffic:
    learned = Traffic.learn(server.client)
    server.fault(f"slow {BATCH_SECONDS}")
    return learned


async def flood(url: str, traffic: Traffic, query: str = "") -> list[tuple[int, httpx.Response]]:
    """Send far more than fits, whether or not answers come."""

    async def post(number: int) -> tuple[int, httpx.Response]:
        await asyncio.sleep(number * 0.003)
        number %= len(traffic.photos)
        # One pool for all would take longer to look for free connections than the server takes to answer.
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=False, trust_env=False) as client:
            return number, await client.post(PATH + query, content=traffic.photos[number])

    return await asyncio.gather(*(post(number) for number in range(REQUESTS)))


def test_a_flood(server: Server, traffic: Traffic) -> None:
    answers = asyncio.run(flood(server.url, traffic))
    statuses = Counter(response.status_code for _, response in answers)
    print(f"\n{dict(statuses)}")
    assert set(statuses) == {200, 429}, "each is answered, one way or the other"
    assert statuses[200] > 16
    for number, response in answers:
        if response.status_code == 200:
            traffic.check(number, response)
        else:
            assert response.json()["slug"] == "queue_full"
            assert int(response.headers["retry-after"]) == math.ceil(response.json()["retry_after"])
            assert 0 < response.json()["retry_after"] < 5, "16 rows don't take longer"
    samples = server.metrics()
    assert samples["condconv_queue_rows"] == samples["condconv_rows_in_flight"] == 0
    assert samples[sample_name("condconv_rejected_total", reason="queue_full")] == statuses[429]
    assert samples["condconv_predicted_wait_seconds"] == 0


def test_a_flood_with_short_deadlines(server: Server, traffic: Traffic) -> None:
    answers = asyncio.run(flood(server.url, traffic, "&timeout_ms=150"))
    slugs = Counter(response.json().get("slug", "answered") for _, response in answers)
    print(f"\n{dict(slugs)}")
    assert set(slugs) <= {"answered", "queue_full", "wait_too_long", "deadline_exceeded"}
    assert slugs["wait_too_long"] > 0, "what can be foreseen is refused at once"
    for number, response in answers:
        if response.status_code == 200:
            traffic.check(number, response)
    traffic.check(0, server.client.post(PATH, content=traffic.photos[0]))


def test_urgent_requests_overtake(server: Server, traffic: Traffic) -> None:
    """Beside a steady crowd of low priority, high priority waits less."""

    async def crowd() -> tuple[list[float], list[float]]:
        limits = httpx.Limits(max_connections=None)
        waits: dict[str, list[float]] = {"low": [], "high": []}
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as client:

            async def ask(priority: str, times: int) -> None:
                for _ in range(times):
                    response = await client.post(f"/predict?priority={priority}", content=traffic.photos[0])
                    (entry,) = response.json()["predictions"]
                    waits[priority].append(entry["timings_ms"]["queue"])

            await asyncio.gather(*(ask("low", 8) for _ in range(14)), ask("high", 16))
        return waits["low"], waits["high"]

    low, high = asyncio.run(crowd())
    print(f"\nmean wait of low priority {sum(low) / len(low):.0f} ms, of high {sum(high) / len(high):.0f} ms")
    assert sum(high) / len(high) < sum(low) / len(low)
