"""Streams of independent requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.grpc import streams
from condconv_serve.fronts.grpc.streams import MAX_AHEAD
from tests.contract.fronts import House, house_with_keys
from tests.contract.grpc_calls import Served, grpc_served, slug_of
from tests.contract.grpc_front import REQUEST, RESPONSE, STREAM_PATH, rows_service
from tests.contract.until import until
from tests.unit.fronts.grpc.test_grpc_calls import ANN, rows


@pytest.fixture
async def house() -> AsyncIterator[tuple[House, AppContext]]:
    async with house_with_keys() as found:
        yield found


def opened(served: Served, **metadata: str) -> Any:
    stream = served.channel.stream_stream(
        STREAM_PATH, request_serializer=REQUEST.SerializeToString, response_deserializer=RESPONSE.FromString
    )
    return stream(metadata=list({**ANN, **metadata}.items()))


def shade_of(response: Any) -> int | str:
    """The class of an answer, or the slug of its error."""
    if not response.raw_output_contents:
        return str(response.id)
    return int(np.frombuffer(response.raw_output_contents[0], np.float32).argmax())


async def test_requests_ride_together_and_are_answered_in_order(house):
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served, **{"x-request-id": "mine"})
        await stream.write(rows(1))
        await until(lambda: found.read("condconv_rows_in_flight") == 1)
        for shade in (2, 3, 4):
            await stream.write(rows(shade))
        await until(lambda: found.batcher.submitted == 4)
        found.free.set()
        await stream.done_writing()
        assert [shade_of(response) async for response in stream] == [1, 2, 3, 4]
    assert [sorted(batch) for batch in found.batches] == [[1], [2, 3, 4]]
    assert found.read("condconv_requests_total", front="grpc", route=STREAM_PATH, method="POST", code="200") == 4


async def test_an_error_ends_its_request_only(house):
    found, context = house
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served)
        for request in (rows(1), REQUEST(id="no rows"), rows(2)):
            await stream.write(request)
        await stream.done_writing()
        assert [shade_of(response) async for response in stream] == [1, "malformed_body", 2]
    assert found.read("condconv_rejected_total", reason="malformed_body") == 1


async def test_or_the_stream_if_the_protocol_wants_it(house):
    found, context = house
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served, strict="yes")
        for request in (rows(1), REQUEST(), rows(2)):
            await stream.write(request)
        assert shade_of(await stream.read()) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert slug_of(caught.value) == "malformed_body"
    assert found.read("condconv_rejected_total", reason="malformed_body") == 1, "once, not for the stream as well"


async def test_keys_and_rates_hold_for_each_request(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served, **{"x-api-key": "wrong"})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        stream = opened(served, **{"x-api-key": "slow"})
        for shade in (1, 2, 3):
            await stream.write(rows(shade))
        await stream.done_writing()
        assert [shade_of(response) async for response in stream] == [1, 2, "rate_limited"]


async def test_a_stream_reads_only_so_far_ahead(house):
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served)
        for shade in range(MAX_AHEAD + 4):
            await stream.write(rows(shade % 6))
        await until(lambda: found.batcher.submitted == MAX_AHEAD)
        await asyncio.sleep(0.05)
        assert found.batcher.submitted == MAX_AHEAD
        found.free.set()
        await stream.done_writing()
        assert [shade_of(response) async for response in stream] == [shade % 6 for shade in range(MAX_AHEAD + 4)]


async def test_and_no_more_bytes(house, monkeypatch):
    monkeypatch.setattr(streams, "MAX_BYTES_AHEAD", 2 * len(rows(1).SerializeToString()))
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served)
        for shade in range(6):
            await stream.write(rows(shade))
        await until(lambda: found.batcher.submitted == 3)
        await asyncio.sleep(0.05)
        assert found.batcher.submitted == 3, "the one that is too many, too"
        found.free.set()
        await stream.done_writing()
        assert [shade_of(response) async for response in stream] == list(range(6))


async def test_a_client_that_leaves_takes_all_rows_along(house):
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context) as served:
        stream = opened(served)
        await stream.write(rows(1))
        await until(lambda: found.read("condconv_rows_in_flight") == 1)
        for shade in (2, 3):
            await stream.write(rows(shade))
        await until(lambda: found.batcher.submitted == 3)
        stream.cancel()
        await until(lambda: found.read("condconv_queue_rows") == 0)
        found.free.set()
        labels = {"front": "grpc", "route": STREAM_PATH, "method": "POST", "code": "499"}
        await until(lambda: found.read("condconv_requests_total", **labels) == 3)
