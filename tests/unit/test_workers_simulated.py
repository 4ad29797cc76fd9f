"""`benchmarks/workers_simulated.py`: what it models, and that it runs. How fast the plane is, no test says."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.workers_simulated import Measured, Resource, hosts

ROOT = Path(__file__).parents[2]
COMPUTING, BESIDE_GPU = hosts(cores=64, rows_per_second=20_000)
IDLE = Measured(answered=0, loop_ms=0.2, engine_ms=0.3, front_ms=0.1, loop_busy=0.3, machine_busy=0.3)


def test_fronts_are_linear_until_the_cores_are_full() -> None:
    for host in (COMPUTING, BESIDE_GPU):
        assert host.linear(8) == 8 * host.linear(1)
        assert host.offered(4) == host.linear(4)
        assert host.offered(64) == host.most < host.linear(64)


def test_a_host_is_filled_by_all_of_a_rows_work() -> None:
    assert pytest.approx(64 / 4.75e-3) == BESIDE_GPU.most
    assert pytest.approx(64 / 14.75e-3) == COMPUTING.most
    small_gpu = replace(BESIDE_GPU, rows_per_second=1000)
    assert small_gpu.most == 1000


def test_streams_compute_what_the_engine_does_in_a_second() -> None:
    for host in (COMPUTING, BESIDE_GPU):
        assert host.streams * host.max_batch_size / host.batch_seconds == pytest.approx(host.rows_per_second)
    assert pytest.approx(8 * 10e-3) == COMPUTING.batch_seconds  # of one core


@pytest.mark.parametrize(
    ("fronts", "measured", "limit"),
    [
        (4, replace(IDLE, answered=2400), "the fronts' event loops"),
        (32, replace(IDLE, answered=13_000), "the modelled cores"),
        (16, replace(IDLE, answered=5000, loop_busy=0.95), "the engine process's event loop"),
        (16, replace(IDLE, answered=5000, machine_busy=0.97), "this machine"),
        (16, replace(IDLE, answered=5000), "the engine process"),
        (16, replace(IDLE, answered=2500), "unclear, perhaps other work"),
    ],
)
def test_what_keeps_fronts_from_more_rows(fronts: int, measured: Measured, limit: str) -> None:
    assert measured.limit(BESIDE_GPU, fronts) == limit


async def test_rows_take_up_a_resource_in_turn() -> None:
    resource, begun = Resource(), time.monotonic()
    ends = []

    async def use() -> None:
        await resource.use(0.01)
        ends.append(time.monotonic() - begun)

    await asyncio.gather(*(use() for _ in range(5)))
    assert all(end > 0.01 * turn - 0.005 for turn, end in enumerate(ends, start=1))


async def test_a_row_sleeps_at_least_as_long_as_its_own_work_takes() -> None:
    begun = time.monotonic()
    await Resource().use(0.0, at_least=0.05)
    assert time.monotonic() - begun > 0.045


@pytest.mark.slow
def test_it_runs() -> None:
    for seconds in ("1", "5", "20"):  # a machine that is too busy may answer no row in less
        command = [sys.executable, "-m", "benchmarks.workers_simulated", "--fronts", "2", "--seconds", seconds]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        if "too busy" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| 2 \| 1,242 \| ([\d,]+) \| .* \|$", done.stdout, re.MULTILINE)
    assert len(rows) == 2, done.stdout
    assert done.stdout.count("event loop ends near") == 2
