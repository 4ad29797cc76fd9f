"""Bodies that are too long or too long in coming, without sockets."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from condconv_serve.errors import BodyTooLarge, Draining, RequestTimeout, UnsupportedEncoding
from condconv_serve.http.body import OpenBodies, PatientBody, read_body
from tests.unit.http.sender import Sender


def request(sender: Sender, **headers: bytes) -> Request:
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": named}, sender)


async def test_body_in_chunks_is_put_together() -> None:
    assert await read_body(request(Sender([b"ab", b"", b"cd"])), 4) == b"abcd"


async def test_no_more_is_read_once_a_body_is_too_large() -> None:
    sender = Sender([bytes(10)] * 1000)
    with pytest.raises(BodyTooLarge, match="100 bytes"):
        await read_body(request(sender), 100)
    assert sender.taken == 11


@pytest.mark.parametrize(
    ("declared", "taken"), [(b"100", 10), (b"101", 0), (b"0" * 5000 + b"100", 10), (b"0" * 5000 + b"101", 0)]
)
async def test_a_body_that_is_declared_to_be_too_large_is_not_asked_for(declared: bytes, taken: int) -> None:
    sender = Sender([bytes(10)] * 10)
    asked = request(sender, content_length=declared)
    if taken:
        assert len(await read_body(asked, 100)) == 100
    else:
        with pytest.raises(BodyTooLarge, match="100 bytes"):
            await read_body(asked, 100)
    assert sender.taken == taken


async def test_a_compressed_body_is_decompressed() -> None:
    body = gzip.compress(bytes(100))
    assert await read_body(request(Sender([body[:9], body[9:]]), content_encoding=b"GZip"), 100) == bytes(100)


async def test_a_body_in_another_encoding_is_not_asked_for() -> None:
    sender = Sender([bytes(10)])
    twice = Request({**request(sender).scope, "headers": [(b"content-encoding", b"gzip")] * 2}, sender)
    for asked in (request(sender, content_encoding=b"br"), twice):
        with pytest.raises(UnsupportedEncoding, match="gzip and deflate can"):
            await read_body(asked, 100)
    assert sender.taken == 0


async def test_client_that_leaves_before() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(request(Sender([bytes(60)], leaves=True)), 100)


def arriving(*chunks: tuple[float, bytes]) -> Any:
    """Chunks that come some seconds after each other, and then nothing any more."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        seconds, chunk = left.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": chunk, "more_body": chunk != b"last"}

    return receive


async def test_a_body_may_pause_now_and_then() -> None:
    body = PatientBody(arriving((0.01, b"a"), (0.01, b"b"), (0, b"last")), bodies=OpenBodies(pause=30, total=60))
    assert [(await body.receive())["body"] for _ in range(3)] == [b"a", b"b", b"last"]
    assert not body.timed_out


async def test_a_body_that_pauses_for_too_long() -> None:
    body = PatientBody(arriving((0, b"a")), bodies=OpenBodies(pause=0.05, total=60))
    await body.receive()
    with pytest.raises(RequestTimeout, match=r"nothing more of it came for 0\.05 seconds"):
        await body.receive()
    assert body.timed_out


async def test_a_body_that_takes_too_long_although_it_never_pauses() -> None:
    body = PatientBody(arriving(*[(0.01, b"a")] * 1000), bodies=OpenBodies(pause=30, total=0.1))

    async def receive_all() -> None:
        while (await body.receive())["more_body"]:
            pass

    with pytest.raises(RequestTimeout, match=r"did not arrive within 0\.1 seconds"):
        await receive_all()
    assert body.timed_out


async def test_after_its_body_a_client_may_wait_for_ever() -> None:
    body = PatientBody(arriving((0, b"last"), (0.2, b"last")), bodies=OpenBodies(pause=0.05, total=0.05))
    await body.receive()
    await body.receive()
    assert not body.timed_out


async def test_bodies_that_are_open_at_the_end_of_the_service_are_given_up() -> None:
    bodies = OpenBodies(pause=30, total=60)
    waiting = PatientBody(arriving((0, b"a")), bodies=bodies)
    later = PatientBody(arriving((0.01, b"a")), bodies=bodies)
    complete = PatientBody(arriving((0, b"last"), (0.05, b"last")), bodies=bodies)
    await waiting.receive()
    await complete.receive()
    asyncio.get_running_loop().call_later(0.01, bodies.give_up)
    with pytest.raises(Draining, match="shutting down, and the body is still incomplete"):
        await waiting.receive()
    with pytest.raises(Draining):
        await later.receive()
    assert waiting.timed_out, "its connection must be closed"
    await complete.receive()
    assert not complete.timed_out, "its request is answered"
