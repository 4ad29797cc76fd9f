"""What is written together leaves together, and closing loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from condconv_serve.http.transport import AnswerTransport
from tests.unit.http.guarded import GET, answer, serving


class Wire(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self, *, half_closes: bool = True) -> None:
        super().__init__()
        self.done: list[object] = []
        self._half_closes = half_closes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def can_write_eof(self) -> bool:
        return self._half_closes

    def write_eof(self) -> None:
        self.done.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.done

    def get_write_buffer_size(self) -> int:
        return 0


def after(do: Callable[[AnswerTransport], None], *, lingers: bool = False, half_closes: bool = True) -> list[object]:
    """What has reached the wire, before and after the loop's next turn, with "turn" in between."""

    async def run() -> list[object]:
        wire = Wire(half_closes=half_closes)
        do(AnswerTransport(wire, asyncio.get_running_loop(), lingers=lambda: lingers))
        wire.done.append("turn")
        await asyncio.sleep(0)
        return wire.done

    return asyncio.run(run())


def write(*parts: bytes) -> Callable[[AnswerTransport], None]:
    def do(transport: AnswerTransport) -> None:
        for part in parts:
            transport.write(part)

    return do


LARGE = b"x" * 100_000


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([b"head", b"body"], [b"headbody", "turn"]),
        ([b"head", LARGE], [b"head" + LARGE, "turn"]),
        ([b"head"], ["turn", b"head"]),
        ([LARGE, LARGE], [LARGE, LARGE, "turn"]),
        ([b"head", b"", b"next"], [b"head", "turn", b"next"]),
        ([b"1", b"2", b"3"], [b"12", "turn", b"3"]),
    ],
)
def test_short_writes_wait_for_the_next_one_or_for_the_loops_turn(parts: list[bytes], expected: list[object]) -> None:
    assert after(write(*parts)) == expected


@pytest.mark.parametrize(
    ("lingers", "half_closes", "expected"),
    [
        (False, True, [b"head", "close", "turn"]),
        (True, True, [b"head", "eof", "turn"]),
        (True, False, [b"head", "turn"]),
    ],
)
def test_closing_sends_what_was_held(*, lingers: bool, half_closes: bool, expected: list[object]) -> None:
    def do(transport: AnswerTransport) -> None:
        transport.write(b"head")
        assert transport.get_write_buffer_size() == 4
        transport.close()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0

    assert after(do, lingers=lingers, half_closes=half_closes) == expected


def test_the_second_step_closes_and_an_abort_drops() -> None:
    def end(transport: AnswerTransport) -> None:
        transport.close()
        transport.write(b"late")
        transport.end()

    def abort(transport: AnswerTransport) -> None:
        transport.write(b"head")
        transport.abort()

    assert after(end, lingers=True) == ["eof", b"late", "close", "turn"]
    assert after(abort) == ["abort", "turn"]


def test_head_and_body_of_a_real_answer_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    kept = AnswerTransport.__init__

    def init(self: AnswerTransport, transport: Any, *args: Any, **kwargs: Any) -> None:
        class Noting(Wire):
            def write(self, data: bytes | bytearray | memoryview) -> None:
                written.append(bytes(data))
                transport.write(data)

            def __getattribute__(self, name: str) -> Any:
                return super().__getattribute__(name) if name == "write" else getattr(transport, name)

        kept(self, Noting(), *args, **kwargs)

    monkeypatch.setattr(AnswerTransport, "__init__", init)
    with serving() as running, running.connect() as connected:
        connected.sendall(GET)
        assert answer(connected).endswith(b"ok")
    assert len(written) == 1
    assert written[0].startswith(b"HTTP/1.1 200")
    assert written[0].endswith(b"ok")
