"""Measures how many rows per second something computes, and how long each call takes. Knows no framework."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What one measurement found.

    Attributes:
        rows_per_second: of all callers together.
        latency_p50: seconds per call, median.
        latency_p99: seconds per call, 99th percentile.
        cpu_per_row: seconds of processor time per row, of all threads of this process. A neighbour that takes away
            processor time changes it less than `rows_per_second`.
    """

    rows_per_second: float
    latency_p50: float
    latency_p99: float
    cpu_per_row: float


def measure(compute: Callable[[int], Any], *, callers: int, rows_per_call: int, seconds: float) -> Throughput:
    """Call a function from several threads at once, over and over.

    Args:
        compute: is given its caller's number, from 0; an exception of its ends the measurement. So does Ctrl-C, as soon
            as the calls that are under way have ended.
        callers: threads that call, each again as soon as it has its answer.
        rows_per_call: what a call counts for.
        seconds: no call starts later than this; each caller makes at least one.
    """
    latencies: list[list[float]] = [[] for _ in range(callers)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(callers + 1)

    def call(number: int) -> None:
        barrier.wait()
        end = time.perf_counter() + seconds
        try:
            while True:
                started = time.perf_counter()
                compute(number)
                latencies[number].append(time.perf_counter() - started)
                if time.perf_counter() >= end or errors:
                    return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    barrier.wait()
    cpu = time.process_time()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
    cpu = time.process_time() - cpu
    # Each caller's own rate: the others' last calls, which end later, would count as idle time.
    rate = sum(rows_per_call * len(own) / sum(own) for own in latencies)
    every = np.concatenate([np.asarray(own) for own in latencies])
    return Throughput(
        rows_per_second=rate,
        latency_p50=float(np.quantile(every, 0.5)),
        latency_p99=float(np.quantile(every, 0.99)),
        cpu_per_row=cpu / (rows_per_call * len(every)),
    )
