"""Messages between processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest

from condconv_serve.cluster.workers.link import Link
from condconv_serve.errors import CorruptImage
from tests.contract.until import until


class End:
    """One end of a link, with what it has heard."""

    def __init__(self, connection: socket.socket) -> None:
        self.heard: list[Any] = []
        self.files: list[int] = []
        self.closed = 0
        self.link = Link(connection, on_message=self._take, on_close=self._close)

    def _take(self, message: Any, link: Link) -> None:
        if message == "nonsense":
            raise ValueError("nonsense")
        if message == "with a file":
            self.files.append(link.take_file())
        self.heard.append(message)

    def _close(self, link: Link) -> None:
        self.closed += 1


@pytest.fixture
async def ends() -> Any:
    one, other = (End(connection) for connection in socket.socketpair())
    yield one, other
    one.link.close()
    other.link.close()


async def test_messages_arrive_in_order_whatever_their_size(ends: tuple[End, End]) -> None:
    one, other = ends
    sent = [1, "two", b"3" * 3_000_000, [4], b"", *range(500)]
    for message in sent[:3]:
        one.link.send(message)
    await asyncio.sleep(0)
    for message in sent[3:]:
        one.link.send(message)
    other.link.send("back")
    await until(lambda: len(other.heard) == len(sent) and one.heard == ["back"])
    assert other.heard == sent


async def test_files_travel_with_their_messages(ends: tuple[End, End]) -> None:
    one, other = ends
    for text in (b"first", b"second"):
        read, write = os.pipe()
        os.write(write, text)
        os.close(write)
        one.link.send(b"x" * 500_000)
        one.link.send("with a file", file=read)
        os.close(read)
        await asyncio.sleep(0)
    await until(lambda: len(other.files) == 2)
    assert [os.read(file, 10) for file in other.files] == [b"first", b"second"]
    assert not any(os.get_inheritable(file) for file in other.files)
    for file in other.files:
        os.close(file)


async def test_any_number_of_files_can_be_sent_at_once(ends: tuple[End, End]) -> None:
    """As when an engine process has started, and is connected with each of many fronts."""
    one, other = ends
    pipes = [os.pipe() for _ in range(100)]
    for number, (read, write) in enumerate(pipes):
        os.write(write, bytes([number]))
        one.link.send("with a file", file=read)
    await until(lambda: len(other.files) == len(pipes) or other.closed)
    assert [os.read(file, 10) for file in other.files] == [bytes([number]) for number in range(len(pipes))]
    for file in (*other.files, *(end for pipe in pipes for end in pipe)):
        os.close(file)


async def test_a_message_whose_file_cannot_be_sent_is_not_sent_without_it(ends: tuple[End, End]) -> None:
    one, other = ends
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.link.send("with a file", file=-1)
    one.link.send("another")
    await until(lambda: other.heard == ["another"])


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("<I", 5) + b"\x00junk",
        struct.pack("<I", 2**31),
        struct.pack("<I", 20) + b"\x80" * 20,
        *(struct.pack("<I", len(body)) + body for body in map(pickle.dumps, (7, ["nonsense"], ["with a file"]))),
    ],
    ids=["no pickle", "too long", "garbage", "no list", "a rule is broken", "a file is missing"],
)
async def test_garbage_closes_the_connection(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    raw, connection = socket.socketpair()
    end = End(connection)
    with raw:
        raw.sendall(sent)
        await until(lambda: end.closed == 1)
        assert raw.recv(1) == b""
    assert not end.heard
    assert "makes no sense" in caplog.text


async def test_what_cannot_be_sent_closes_the_connection(
    ends: tuple[End, End], caplog: pytest.LogCaptureFixture
) -> None:
    """Else somebody would wait for ever for an answer that was lost."""
    one, other = ends
    read, write = os.pipe()
    one.link.send("with a file", file=read)
    one.link.send(lambda: None)
    await until(lambda: one.closed == other.closed == 1)
    assert not other.heard
    assert "can't be sent" in caplog.text
    os.close(read)
    with pytest.raises(BrokenPipeError):  # nobody holds a copy of its other end
        os.write(write, b"x")
    os.close(write)


async def test_half_a_message_is_none() -> None:
    raw, connection = socket.socketpair()
    end = End(connection)
    body = pickle.dumps(["whole"])
    raw.sendall(struct.pack("<I", len(body)) + body + struct.pack("<I", 1000) + b"half")
    raw.close()  # killed
    await until(lambda: end.closed == 1)
    assert end.heard == ["whole"]


async def test_a_link_closes_once_from_both_ends_and_then_sends_nothing(ends: tuple[End, End]) -> None:
    one, other = ends
    one.link.send("lost")
    one.link.close()
    one.link.close()
    one.link.send("lost, too")
    await until(lambda: other.closed == 1)
    assert one.closed == 1
    assert not other.heard
    other.link.send("to nobody")


async def test_a_reader_that_stalls_blocks_nobody_and_gets_all() -> None:
    raw, connection = socket.socketpair()
    end = End(connection)
    sent = [bytes(1_000_000)] * 20
    for message in sent:
        end.link.send(message)
        await asyncio.sleep(0)
    other = End(raw)
    await until(lambda: len(other.heard) == 20)
    assert other.heard == sent
    end.link.close()
    other.link.close()


class Inner(NamedTuple):
    numbers: tuple[int, ...]


class Outer(NamedTuple):
    inner: Inner
    more: Any = None


async def test_named_tuples_arrive_as_what_they_are(ends: tuple[End, End]) -> None:
    one, other = ends
    sent = [Outer(Inner((1, 2)), {"an": np.arange(3)}), Outer(Inner(()), CorruptImage("It is damaged.")), ("plain", 1)]
    for message in sent:
        one.link.send(message)
    await until(lambda: len(other.heard) == len(sent))
    array, error, plain = other.heard
    assert type(array) is Outer
    assert type(array.inner) is Inner
    assert array.inner == Inner((1, 2))
    assert array.more["an"].tolist() == [0, 1, 2]
    assert (error.inner, type(error.more), str(error.more)) == (Inner(()), CorruptImage, "It is damaged.")
    assert type(plain) is tuple
