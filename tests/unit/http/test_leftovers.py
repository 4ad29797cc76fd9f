"""How long bytes are read that come after their answer, by a clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.http.limits import ConnectionLimits
from condconv_serve.http.lingering import Leftovers
from condconv_serve.telemetry.metrics import Metrics

LIMITS = ConnectionLimits(
    header_timeout=60.0, write_timeout=60.0, max_connections=1, linger_pause=5.0, linger_timeout=30.0, linger_bytes=100
)


@dataclass
class Call:
    when: float
    do: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """An event loop as far as timers go."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[Call] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, do: Callable[..., None], *arguments: Any) -> Call:
        self._calls.append(call := Call(self.now + seconds, partial(do, *arguments)))
        return call

    def move(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [call for call in self._calls if not call.cancelled and call.when <= end]:
            next_call = min(due, key=lambda call: call.when)
            self._calls.remove(next_call)
            self.now = next_call.when
            next_call.do()
        self.now = end


class Reader:
    """Leftovers that are being read, and whether that has ended."""

    def __init__(self) -> None:
        self.clock, self.ended, self.is_sent = Clock(), False, True
        loop: Any = self.clock
        gauge = Metrics(CollectorRegistry()).lingering_connections
        self.leftovers = Leftovers(LIMITS, loop, gauge=gauge)
        self.leftovers.begin(is_sent=lambda: self.is_sent, on_end=self._end)

    def _end(self) -> None:
        self.ended = True
        self.leftovers.stop()

    def after(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        self.clock.move(seconds)
        return self.ended


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_client_that_pauses_is_left(reader: Reader) -> None:
    assert not reader.after(4.9)
    assert reader.after(0.2)


def test_a_client_that_sends_slowly_is_waited_for_until_it_takes_too_long(reader: Reader) -> None:
    for _ in range(7):
        assert not reader.after(4.0)
        reader.leftovers.add(1)
    assert not reader.after(1.9)
    assert reader.after(0.2)


def test_a_client_that_sends_too_much_is_left(reader: Reader) -> None:
    reader.leftovers.add(100)
    assert not reader.ended
    reader.leftovers.add(1)
    assert reader.ended


def test_until_the_answer_is_out_the_client_need_not_send(reader: Reader) -> None:
    reader.is_sent = False
    assert not reader.after(29.0)
    reader.is_sent = True
    assert reader.after(5.1)


def test_at_the_end_of_the_server_pauses_are_shorter_but_who_sends_is_still_waited_for(reader: Reader) -> None:
    reader.leftovers.hurry()
    for _ in range(5):
        assert not reader.after(0.9)
        reader.leftovers.add(1)
    assert not reader.after(0.9)
    assert reader.after(0.2)
