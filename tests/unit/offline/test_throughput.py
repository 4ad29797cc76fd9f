import threading
import time

import pytest

from condconv_serve.offline import throughput
from condconv_serve.offline.throughput import measure


def test_rate_and_latency_follow_from_the_calls():
    calls = []

    def compute(caller):
        calls.append(caller)
        time.sleep(0.02)

    found = measure(compute, callers=2, rows_per_call=4, seconds=0.2)
    assert set(calls) == {0, 1}
    assert 0.02 <= found.latency_p50 <= found.latency_p99
    # Two callers with four rows each per call; sleeping longer than asked for only makes it slower.
    assert 0 < found.rows_per_second <= 2 * 4 / 0.02
    assert found.rows_per_second == pytest.approx(8 / found.latency_p50, rel=0.5)


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

    before, started = threading.active_count(), time.monotonic()
    monkeypatch.setattr(throughput.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(lambda caller: time.sleep(0.01), callers=2, rows_per_call=1, seconds=60)
    assert time.monotonic() - started < 30
    assert threading.active_count() == before


def test_callers_call_at_once():
    together = threading.Barrier(3, timeout=10)
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
