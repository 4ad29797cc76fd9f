import threading
import time

import pytest

from condconv_serve.offline import throughput
from condconv_serve.offline.throughput import measure


def test_rate_and_latency_follow_from_the_calls(monkeypatch):
    """By a clock that goes on for each caller while it computes, and else stands still."""
    own, calls = threading.local(), []

    def compute(caller):
        calls.append(caller)
        own.now = now() + (0.05 if calls.count(caller) == 1 else 0.02)

    def now():
        return getattr(own, "now", 0.0)

    monkeypatch.setattr(throughput.time, "perf_counter", now)
    found = measure(compute, callers=2, rows_per_call=4, seconds=0.2)
    assert sorted(calls) == [0] * 9 + [1] * 9
    assert found.latency_p50 == pytest.approx(0.02)
    assert 0.02 < found.latency_p99 <= 0.05
    assert found.rows_per_second == pytest.approx(2 * 4 * 9 / (0.05 + 8 * 0.02))


def test_processor_time_counts_what_is_computed_and_no_waiting():
    def compute(caller):
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        time.sleep(0.06)

    found = measure(compute, callers=2, rows_per_call=4, seconds=0.2)
    assert 0.02 / 4 <= found.cpu_per_row < 0.06 / 4  # whoever waits for the processor uses none


def test_ctrl_c_ends_the_measurement_and_its_threads(monkeypatch):
    pressed = []

    class Interrupted(threading.Thread):
        def join(self, timeout=None):
            if not pressed:
                pressed.append(True)
                raise KeyboardInterrupt
            super().join(timeout)

    before, started = set(threading.enumerate()), time.monotonic()
    monkeypatch.setattr(throughput.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(lambda caller: time.sleep(0.01), callers=2, rows_per_call=1, seconds=60)
    assert time.monotonic() - started < 30
    assert set(threading.enumerate()) <= before


def test_callers_call_at_once():
    together = threading.Barrier(3, timeout=60)
    calls = []

    def compute(caller):
        together.wait()
        calls.append(caller)

    measure(compute, callers=3, rows_per_call=1, seconds=0)
    assert sorted(calls) == [0, 1, 2]  # each at least once, even without time


def test_a_callers_exception_ends_the_measurement():
    def compute(caller):
        if caller == 1:
            raise ValueError("no")
        time.sleep(0.001)

    started = time.monotonic()
    with pytest.raises(ValueError, match="no"):
        measure(compute, callers=2, rows_per_call=1, seconds=60)
    assert time.monotonic() - started < 30
