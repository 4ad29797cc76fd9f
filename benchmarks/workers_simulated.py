"""Whether one engine process keeps up with many fronts on a larger host, whose cores are modelled by sleeping.

Run `python -m benchmarks.workers_simulated` on a machine that has nothing else to do; it takes three minutes.

The engine process and its fronts are real, and so is all that they do with each other: shared memory, messages,
admission, the queue, batches, streams and what is counted. What would keep a large host's cores busy is slept for as
long as it takes: HTTP and decoding in the fronts, computing in the engine. A front that sleeps stands for one that has
cores of its own. So this shows how many fronts the plane keeps up with. It can't show more rows than the engine
process and the messages of all fronts get done on the cores that there are.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import uvloop

from benchmarks.workers import ANSWER, FRONT_MS, MAX_QUEUE_ROWS, ROW, Engine, ask_for_row, plane_of, the_model
from condconv_serve.domain import MadeRow, Row, ServedModel, Tensors
from condconv_serve.inference.runner import BatchRunner
from condconv_serve.inference.streams import StreamPool
from condconv_serve.machine.cores import available_cores
from condconv_serve.machine.interpreter import serve_rather_than_compute

LOOP_MS = FRONT_MS["HTTP"] + 0.11
"""What a row takes of a front's event loop: HTTP, and messages (docs/performance.md). The second is done, too."""
DECODING_MS = FRONT_MS["decoding"]
ENGINE_MS = 0.14
COMPUTING_MS = 10.0
"""CPU time of a row in the engine process's event loop, and in an engine on a CPU."""
ENOUGH = 0.9
"""The share of what is expected that counts as keeping up."""
WARM_UP_SECONDS = 2.0
TITLES = (
    "fronts",
    "rows/s offered",
    "answered",
    "of linear",
    "of offered",
    "ms a row: the engine's event loop",
    "the engine process",
    "a front",
    "busy: the engine's event loop",
    "this machine",
    "limit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host that is modelled: its cores, and its engine with so many streams and rows in a batch."""

    name: str
    cores: int
    rows_per_second: float
    computing_ms: float
    streams: int
    max_batch_size: int

    @property
    def core_ms(self) -> float:
        """The time of a core that a row takes in all processes together."""
        return LOOP_MS + DECODING_MS + ENGINE_MS + self.computing_ms

    @property
    def batch_seconds(self) -> float:
        """What a batch takes, full or not."""
        return self.streams * self.max_batch_size / self.rows_per_second

    @property
    def most(self) -> float:
        """Rows a second that fill the cores, or the engine."""
        return min(self.cores * 1e3 / self.core_ms, self.rows_per_second)

    def linear(self, fronts: int) -> float:
        """Rows a second that the event loops of so many fronts take in."""
        return fronts * 1e3 / LOOP_MS

    def offered(self, fronts: int) -> float:
        """Rows a second that so many fronts take in and decode, if nothing holds them up."""
        return min(self.linear(fronts), self.most)


def hosts(cores: int, rows_per_second: float) -> Sequence[Host]:
    """A host whose cores compute, too, and one with a GPU of so many rows a second."""
    on_cores = cores * 1e3 / COMPUTING_MS
    return (
        Host(
            name=f"{cores} cores, which compute too",
            cores=cores,
            rows_per_second=on_cores,
            computing_ms=COMPUTING_MS,
            streams=cores,
            max_batch_size=8,
        ),
        Host(
            name=f"{cores} cores beside a GPU of {rows_per_second:,.0f} rows a second",
            cores=cores,
            rows_per_second=rows_per_second,
            computing_ms=0.0,
            streams=2,
            max_batch_size=64,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Rows answered per second, and CPU time really used: milliseconds per row, and shares of what there is."""

    answered: float
    loop_ms: float
    engine_ms: float
    front_ms: float
    loop_busy: float
    machine_busy: float

    def limit(self, host: Host, fronts: int) -> str:
        """What keeps so many fronts from more rows."""
        if self.answered >= ENOUGH * host.linear(fronts):
            return "the fronts' event loops"
        if self.answered >= ENOUGH * host.most:
            return "the modelled cores"
        if self.loop_busy >= ENOUGH:
            return "the engine process's event loop"
        if self.machine_busy >= ENOUGH:
            return "this machine"
        if self.engine_ms * self.answered / 1e3 >= ENOUGH:  # its streams' threads wait for each other, and for the loop
            return "the engine process"
        return "unclear, perhaps other work"


class SleepingEngine(Engine):
    """An engine process's plane, with threads for streams, whose engine sleeps for as long as a batch takes."""

    def __init__(self, host: Host) -> None:
        """Model the engine of a host."""
        answers = {name: np.stack([values] * host.max_batch_size) for name, values in ANSWER.items()}

        def compute(rows: Row, stream: int) -> Tensors:
            time.sleep(host.batch_seconds)
            return {name: values[: len(rows)] for name, values in answers.items()}

        super().__init__(the_model(compute), streams=host.streams, max_batch_size=host.max_batch_size)
        self.streams = StreamPool(host.streams, stall_timeout=60, metrics=self.metrics)
        self._runner = BatchRunner(self.streams, hold=self.models.hold)

    async def run(self, model: ServedModel, rows: Sequence[Any]) -> Sequence[Any]:
        """Compute a batch on a free stream."""
        return await self._runner(model, rows)


class Resource:
    """What one row after the other takes up for a time. Rows sleep until it is their turn and their time is over."""

    def __init__(self) -> None:
        """Nothing takes it up yet."""
        self._free_at = 0.0

    async def use(self, seconds: float, *, at_least: float = 0.0) -> None:
        """Take it up for so long, and sleep at least for another time."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + seconds
        await asyncio.sleep(max(self._free_at - now, at_least))


class ModelledFront:
    """One of a host's fronts, with requests that wait at it."""

    def __init__(self, plane: Any, host: Host, fronts: int) -> None:
        """Be one of so many."""
        self._plane = plane
        self._host = host
        self._loop, self._cores = Resource(), Resource()
        self._share = host.cores / fronts
        self.answered = 0

    async def _decode(self) -> MadeRow:
        # The cores have to do all of the row's work, wherever it is done. Decoding uses one of them at a time.
        await self._cores.use(self._host.core_ms / 1e3 / self._share, at_least=DECODING_MS / 1e3)
        return MadeRow(ROW, DECODING_MS / 1e3)

    async def client(self, end: float) -> None:
        """Ask for a row as soon as the one before is answered, for a while."""
        while time.monotonic() < end:
            await self._loop.use(LOOP_MS / 1e3)
            await ask_for_row(self._plane, self._decode)
            self.answered += 1


async def serve_modelled(fronts: Sequence[ModelledFront], clients: int, report: Any) -> None:
    """Have fronts serve until the time is over that `report` tells; report rows, CPU time and time."""
    report.send("connected")
    begin, end = await asyncio.to_thread(report.recv)
    running = [asyncio.create_task(front.client(end)) for front in fronts for _ in range(clients)]
    await _until(begin)
    rows, spent, started = _answered(fronts), time.process_time(), time.monotonic()
    await _until(end)
    found = _answered(fronts) - rows, time.process_time() - spent, time.monotonic() - started
    await asyncio.gather(*running)
    report.send(found)


def _answered(fronts: Sequence[ModelledFront]) -> int:
    return sum(front.answered for front in fronts)


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def run_fronts(connections: Sequence[socket.socket], host: Host, fronts: int, clients: int, report: Any) -> None:
    """A process with some of the fronts."""

    async def serve() -> None:
        planes = await asyncio.gather(*map(plane_of, connections))
        await serve_modelled([ModelledFront(plane, host, fronts) for plane in planes], clients, report)

    uvloop.run(serve())


def measure(host: Host, fronts: int, *, processes_of_fronts: int, clients: int, seconds: float) -> Measured:
    """Start an engine process's plane here and so many fronts, and have them busy for a while."""
    context = get_context("fork")
    clients = min(clients, MAX_QUEUE_ROWS // fronts)
    connections, processes, pipes = list[socket.socket](), [], []
    for number in range(min(processes_of_fronts, fronts)):
        ours, theirs = zip(*(socket.socketpair() for _ in range(number, fronts, processes_of_fronts)), strict=True)
        report, reports = context.Pipe()
        process = context.Process(target=run_fronts, args=(theirs, host, fronts, clients, reports), daemon=True)
        process.start()
        for connection in theirs:
            connection.close()
        reports.close()
        connections += ours
        processes.append(process)
        pipes.append(report)
    measured = uvloop.run(_serve(host, connections, pipes, seconds))
    for process in processes:
        process.join()
    return measured


async def _serve(host: Host, connections: Sequence[socket.socket], pipes: Sequence[Any], seconds: float) -> Measured:
    engine = SleepingEngine(host)

    async def reports() -> Sequence[Any]:
        return await asyncio.gather(*(asyncio.to_thread(pipe.recv) for pipe in pipes))

    with engine.streams:
        async with engine.batcher:
            with engine.hub() as hub:
                for connection in connections:
                    hub.take(connection)
                await reports()
                begin = time.monotonic() + WARM_UP_SECONDS
                for pipe in pipes:
                    pipe.send((begin, begin + seconds))
                await _until(begin)
                started, loop, process = time.monotonic(), time.thread_time(), time.process_time()
                await _until(begin + seconds)
                loop, process = time.thread_time() - loop, time.process_time() - process
                wall = time.monotonic() - started
                found = await reports()
    rows, spent = sum(rows for rows, *_ in found), sum(spent for _, spent, _ in found)
    if not rows:
        raise SystemExit("No row was answered in time: this machine is too busy.")
    return Measured(
        answered=sum(rows / took for rows, _, took in found),
        loop_ms=loop / rows * 1e3,
        engine_ms=process / rows * 1e3,
        front_ms=spent / rows * 1e3,
        loop_busy=loop / wall,
        machine_busy=(process + spent) / wall / available_cores(),
    )


def simulate(host: Host, arguments: argparse.Namespace) -> None:
    """Measure a host with more and more fronts, and print a table and what it shows."""
    print(f"\n{host.name}: {host.most:,.0f} rows a second fill it, and a front takes in {host.linear(1):,.0f}")
    print(f"| {' | '.join(TITLES)} |\n|{len(TITLES) * '---|'}")
    linear, ended, loop_ms = None, None, math.inf
    for fronts in arguments.fronts:
        found = measure(
            host,
            fronts,
            processes_of_fronts=arguments.processes,
            clients=arguments.clients,
            seconds=arguments.seconds,
        )
        share, limit = found.answered / host.linear(fronts), found.limit(host, fronts)
        print(
            f"| {fronts} | {host.offered(fronts):,.0f} | {found.answered:,.0f} | {share:.2f} | "
            f"{found.answered / host.offered(fronts):.2f} | {found.loop_ms:.3f} | {found.engine_ms:.3f} | "
            f"{found.front_ms:.3f} | {found.loop_busy:.0%} | {found.machine_busy:.0%} | {limit} |",
            flush=True,
        )
        loop_ms = min(loop_ms, found.loop_ms)
        if ended is None and share >= ENOUGH:
            linear = f"Up to {fronts} fronts at least {ENOUGH} of linear: {found.answered:,.0f} rows a second."
        elif ended is None:
            ended = f"With {fronts} fronts the limit is another one: {limit}, at {found.answered:,.0f} rows a second."
    print(*filter(None, (linear, ended)), sep="\n")
    loop = 1e3 / loop_ms
    print(
        f"By what rows cost, the engine process's event loop ends near {loop:,.0f} rows a second here, those of "
        f"{loop * host.core_ms / 1e3:.0f} such cores."
    )


def main() -> None:
    """Read the command line, and simulate both hosts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fronts", type=int, nargs="+", default=[1, 2, 4, 6, 8, 12, 16, 32])
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--rows-per-second", type=float, default=20_000)
    parser.add_argument("--clients", type=int, default=128, help="requests that wait at each front")
    parser.add_argument("--processes", type=int, default=1, help="how many share the fronts")
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args()
    serve_rather_than_compute()
    for host in hosts(arguments.cores, arguments.rows_per_second):
        simulate(host, arguments)


if __name__ == "__main__":
    main()
