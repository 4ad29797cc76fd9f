"""What every call gets, whatever its protocol; the contract tests of all fronts say the rest."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from condconv_serve.errors import QueueFull
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.grpc.messages import MAX_ENTRIES
from condconv_serve.fronts.grpc.server import MESSAGE_ROOM, GrpcLimits
from condconv_serve.fronts.grpc.service import Call, Method, Service
from condconv_serve.http.body import OpenBodies
from tests.contract.fronts import House, house_with_keys
from tests.contract.grpc_calls import call, connected, grpc_served, retry_of, slug_of
from tests.contract.grpc_front import MESSAGES, NAME, PATH, REQUEST, RESPONSE, rows_service
from tests.contract.until import until

ANN = {"x-api-key": "ann"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def house() -> AsyncIterator[tuple[House, AppContext]]:
    async with house_with_keys() as found:
        yield found


def rows(*shades: int) -> Any:
    request = REQUEST(raw_input_contents=[bytes(value for shade in shades for value in [shade] * 32 * 32 * 3)])
    request.inputs.add(shape=(len(shades), 32, 32, 3))
    return request


def answering(answer: Any, **options: Any) -> Service:
    return Service(
        name=NAME,
        front="grpc",
        methods={"ModelInfer": Method(request=REQUEST, answer=answer, **options)},
        files=MESSAGES.files,
    )


def refusing(error: Exception) -> Service:
    async def answer(request: Any, call: Call) -> Any:
        raise error

    return answering(answer, access="open")


async def test_a_key_may_be_a_bearer_token(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        for headers, status in (
            ({"authorization": "Bearer ann"}, 200),
            ({"authorization": "bearer  ann "}, 200),
            ({"authorization": "Basic ann"}, 401),
            ({"authorization": "Bearer for-the-proxy", "x-api-key": "ann"}, 200),
        ):
            assert (await call(served.channel, PATH, rows(1), headers))[0].status == status, headers


async def test_admins_only(house):
    _, context = house

    async def answer(request: Any, call: Call) -> Any:
        return RESPONSE()

    async with grpc_served([answering(answer, access="admin")], context) as served:
        assert (await call(served.channel, PATH, REQUEST(), ANN))[0].slug == "forbidden"


async def test_ids_and_traces_are_taken_and_returned(house, caplog):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        with caplog.at_level(logging.INFO, logger="condconv_serve.access"):
            pending = served.channel.unary_unary(PATH)(
                rows(1, 2).SerializeToString(),
                metadata=[("x-api-key", "ann"), ("x-request-id", "mine"), ("traceparent", TRACE)],
            )
            await pending
            trailing = dict(tuple(await pending.trailing_metadata()))
    assert trailing["x-request-id"] == "mine"
    assert re.fullmatch(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01", trailing["traceresponse"])
    (record,) = caplog.records
    assert re.match(rf"gRPC {PATH} OK in [\d.]+ ms \[mine\] key=ann model=fake/1 rows=2 .*trace=0af7", record.message)
    assert {name: vars(record)[name] for name in ("request_id", "route", "method", "status", "model", "outcome")} == {
        "request_id": "mine",
        "route": PATH,
        "method": "POST",
        "status": "OK",
        "model": "fake/1",
        "outcome": "answered",
    }


async def test_an_error_says_when_to_try_again(house):
    _, context = house
    async with grpc_served([refusing(QueueFull("Too many rows wait.", retry_after=0.25))], context) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.channel.unary_unary(PATH)(b"")
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many rows wait.")
    assert (slug_of(error), retry_of(error)) == ("queue_full", 0.25)


async def test_a_long_message_is_cut_so_that_it_arrives(house):
    _, context = house
    async with grpc_served([refusing(QueueFull("é" * 10_000))], context) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.channel.unary_unary(PATH)(b"")
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.fullmatch("é{500,}[.]{3}", caught.value.details())
    # Beyond the soft limit of 8 KiB clients refuse some at random.
    sent = [("grpc-message", 3 * caught.value.details().encode()), *caught.value.trailing_metadata()]
    assert sum(len(name) + len(value) for name, value in sent) < 6000


async def test_a_defect_is_logged_but_not_told(house, caplog):
    found, context = house
    async with grpc_served([refusing(ValueError("secret"))], context) as served:
        heard, _ = await call(served.channel, PATH, REQUEST())
        assert (heard.status, heard.slug) == (500, "internal_error")
        assert any("unexpected error in" in record.message and record.exc_info for record in caplog.records)
        await until(lambda: found.read("condconv_rejected_total", reason="internal_error") == 1)


@pytest.mark.parametrize(("data", "says"), [(b"\xff\xff", "no inference.ModelInferRequest"), (b"", "holds no rows")])
async def test_bytes_that_are_no_message(house, data, says):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        with pytest.raises(grpc.aio.AioRpcError, match=says) as caught:
            await served.channel.unary_unary(PATH)(data, metadata=list(ANN.items()))
    assert (caught.value.code(), slug_of(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed_body")


async def test_a_call_without_a_message(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        pending = served.channel.stream_unary(PATH)(metadata=list(ANN.items()))
        await pending.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="holds no message"):
            await pending


async def test_a_message_that_is_too_large(house):
    _, context = house
    context = replace(context, limits=BodyLimits(max_body_bytes=10_000, max_images=20))
    async with grpc_served([rows_service(context)], context) as served:
        with pytest.raises(grpc.aio.AioRpcError, match=str(10_000 + MESSAGE_ROOM)) as caught:
            await served.channel.unary_unary(PATH)(bytes(10_001 + MESSAGE_ROOM), metadata=list(ANN.items()))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await call(served.channel, PATH, rows(1), ANN))[0].status == 200


async def test_a_message_with_too_many_entries(house):
    """Two bytes each: as many as the size allows would hold up everybody for minutes."""
    _, context = house
    request = rows(1)
    for _ in range(MAX_ENTRIES):
        request.outputs.add()
    async with grpc_served([rows_service(context)], context) as served:
        with pytest.raises(grpc.aio.AioRpcError, match=f"more than {MAX_ENTRIES} entries") as caught:
            await served.channel.unary_unary(PATH)(request.SerializeToString(), metadata=list(ANN.items()))
        assert (caught.value.code(), slug_of(caught.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large")
        assert (await call(served.channel, PATH, rows(1), ANN))[0].status == 200


async def test_a_message_that_is_too_large_once_it_is_decompressed(house):
    """It isn't decompressed any further: 32 MiB could become 32 GiB."""
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        with pytest.raises(grpc.aio.AioRpcError, match="Decompressed message larger than max") as caught:
            await served.channel.unary_unary(PATH)(
                bytes(5_000_000), metadata=list(ANN.items()), compression=grpc.Compression.Gzip
            )
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_refusal_needs_no_message(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        pending = served.channel.stream_unary(PATH)(metadata=[("x-api-key", "wrong")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pending  # nothing was written
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_that_does_not_come(house):
    _, context = house
    context = replace(context, bodies=OpenBodies(total=0.05))
    async with grpc_served([rows_service(context)], context) as served:
        pending = served.channel.stream_unary(PATH)(metadata=list(ANN.items()))
        with pytest.raises(grpc.aio.AioRpcError, match="did not arrive within") as caught:
            await pending
    assert slug_of(caught.value) == "request_timeout"


@pytest.mark.slow
async def test_the_calls_own_deadline(house):
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.channel.unary_unary(PATH)(rows(1).SerializeToString(), metadata=list(ANN.items()), timeout=2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        labels = {"front": "grpc", "route": PATH, "method": "POST", "code": "504", "deadline": "caller"}
        await until(lambda: found.read("condconv_requests_total", **labels) == 1)
        assert found.read("condconv_queue_rows") == 0
        found.free.set()
        assert (await call(served.channel, PATH, rows(1), ANN, timeout=3600))[0].status == 200, (
            "longer than the server's"
        )


@pytest.mark.slow
async def test_a_deadline_that_nothing_waits_for(house):
    """gRPC cancels the call by itself."""
    found, context = house

    async def answer(request: Any, call: Call) -> Any:
        await asyncio.sleep(60)

    async with grpc_served([answering(answer, access="open")], context) as served:
        with pytest.raises(grpc.aio.AioRpcError):
            await served.channel.unary_unary(PATH)(b"", timeout=2)
        labels = {"front": "grpc", "route": PATH, "method": "POST", "code": "504", "deadline": "caller"}
        await until(lambda: found.read("condconv_requests_total", **labels) == 1)
        assert found.read("condconv_rejected_total", reason="deadline_exceeded", deadline="caller") == 1


async def test_too_many_calls(house):
    found, context = house
    found.free.clear()
    async with grpc_served([rows_service(context)], context, limits=GrpcLimits(max_connections=2)) as served:
        first = [asyncio.create_task(call(served.channel, PATH, rows(shade), ANN)) for shade in (1, 2)]
        await until(lambda: found.batcher.submitted == 2)
        # The same connection would wait: HTTP/2 itself limits its streams.
        async with connected(served.port) as other:
            heard, _ = await call(other, PATH, rows(3), ANN)
        assert (heard.status, heard.slug) == (503, "too_many_connections")
        found.free.set()
        assert [heard.status for heard, _ in await asyncio.gather(*first)] == [200, 200]


async def test_methods_that_there_are_not(house):
    found, context = house
    async with grpc_served([rows_service(context)], context) as served:
        for path in ("/nothing.Here/Method", f"/{NAME}/Nothing"):
            heard, _ = await call(served.channel, path, REQUEST())
            assert (heard.status, heard.slug) == (404, "not_supported")
        labels = {"front": "grpc", "route": "/unmatched", "method": "POST", "code": "404"}
        await until(lambda: found.read("condconv_requests_total", **labels) == 2)


async def test_compressed_calls(house):
    _, context = house
    async with grpc_served([rows_service(context)], context) as served:
        heard, _ = await call(served.channel, PATH, rows(1, 2), ANN, compression=grpc.Compression.Gzip)
    assert heard.status == 200
