"""What workers cost and bring: CPU time per row of the engine's event loop and of a front's, and how fronts scale.

Run `python -m benchmarks.workers cost` for the first, `python -m benchmarks.workers scale` for a model of larger hosts
that is made of the costs measured here. Times are CPU times of threads, so other work on the machine disturbs little.
`benchmarks/workers_simulated.py` tries that model out.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing import get_context
from typing import Any

import numpy as np
import uvloop
from prometheus_client import CollectorRegistry

from condconv_serve.cluster.workers.hub import Hub
from condconv_serve.cluster.workers.remote_engine import RemoteEngine
from condconv_serve.cluster.workers.remote_plane import CHECK, RemotePlane
from condconv_serve.domain import MadeRow, Row, RowAnswer, RowSource, ServedModel, Tensors
from condconv_serve.domain.facts import Deadline
from condconv_serve.inference.batching import Batcher, Priority
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.machine.interpreter import serve_rather_than_compute
from condconv_serve.routing.live import LiveRouting
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.served import LeasedModels, Served
from condconv_serve.store.default import Default
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FunctionEngine, even_layout, model_info, served_model

SIZE = 224
ROW = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
ANSWER = {
    "logits": np.zeros(1000, np.float32),
    "routing": np.zeros((9, 4), np.float32),
    "features": np.zeros(1280, np.float32),
}
MAX_QUEUE_ROWS = 4096
FRONT_MS = {"HTTP": 1.5, "decoding": 3.0}
"""CPU time per photo in a front: the event loop's (docs/performance.md) and the decoding threads'."""


def the_model(compute: Callable[[Row, int], Tensors] = lambda rows, stream: {}) -> ServedModel:
    """A model with rows of 224x224 and answers of 9 kB; nothing computes, unless said."""
    info = model_info(image_size=SIZE, layout=even_layout(9, 4))
    return served_model(info, FunctionEngine(compute))


async def make() -> MadeRow:
    """A row that is there already."""
    return MadeRow(ROW)


class Engine:
    """The plane of an engine process whose engine takes no time."""

    def __init__(self, model: ServedModel | None = None, *, streams: int = 2, max_batch_size: int = 64) -> None:
        """Serve a model."""
        self.metrics = Metrics(CollectorRegistry())
        model = model or the_model()
        self.models = LeasedModels(
            Served(default=Default(name=model.name, reason=""), models={model.name: {model.version: model}}),
            release_memory=lambda: None,
        )
        self.batcher: Any = Batcher(
            self.run,
            streams=streams,
            max_batch_size=max_batch_size,
            max_queue_rows=MAX_QUEUE_ROWS,
            metrics=self.metrics,
            label_of=lambda model: model.name,
            identity_of=lambda model: (model.name, model.version),
        )
        self.plane = InferencePlane(self.models, self.batcher, metrics=self.metrics, observe=LiveRouting().observe)
        self.readiness = Readiness(lambda: None)
        self.readiness.loaded()

    async def run(self, _: ServedModel, rows: Sequence[Any]) -> Sequence[Any]:
        """Answer a batch at once."""
        return [ANSWER] * len(rows)

    def hub(self) -> Hub:
        """What takes fronts, and lets them call what each request calls."""

        def calls(session: Any) -> Any:
            def check(number: int, priority: int, deadline: float, cache: None) -> None:
                self.plane.check_room(session.model(number), priority=Priority(priority), deadline=deadline)

            return {CHECK: check}

        return Hub(self.plane, self.models, self.readiness, slots=2 * MAX_QUEUE_ROWS, calls=calls)


async def plane_of(connection: socket.socket) -> RemotePlane:
    """A front's plane, once the engine process at the other end has said what it serves."""
    engine = RemoteEngine()
    engine.connect(connection)
    while not engine.models.models():  # noqa: ASYNC110 - nothing announces them
        await asyncio.sleep(0.01)
    return RemotePlane(engine)


async def ask_for_row(plane: Any, make: Callable[[], Awaitable[MadeRow]] = make) -> None:
    """Have one row made and computed, as a front does for a request."""
    with plane.lease() as model:
        await plane.check(priority=Priority.HIGH)
        deadline = Deadline(time.monotonic() + 30, by="service")
        [answer] = await plane.infer_each(model, [RowSource(make)], deadline=deadline)
        if not isinstance(answer, RowAnswer):
            raise answer


def run_front(connection: socket.socket, clients: int, seconds: float, report: Any) -> None:
    """A front that sends rows for a while, and reports how many were answered and its CPU time for each."""

    async def serve() -> None:
        report.send(await ask(await plane_of(connection), clients, seconds))

    uvloop.run(serve())


async def ask(plane: Any, clients: int, seconds: float) -> tuple[int, float]:
    """Have rows computed for a while: how many, and the CPU time of this thread."""
    answered, end, begun = 0, time.monotonic() + seconds, time.thread_time()

    async def client() -> None:
        nonlocal answered
        while time.monotonic() < end:
            await ask_for_row(plane)
            answered += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered, time.thread_time() - begun


async def in_one_process(clients: int, seconds: float) -> float:
    """Milliseconds of the event loop per row where front and engine share it."""
    engine = Engine()
    async with engine.batcher:
        rows, spent = await ask(engine.plane, clients, seconds)
    return spent / rows * 1e3


async def with_fronts(fronts: int, clients: int, seconds: float) -> tuple[float, float, float]:
    """Rows a second, and milliseconds per row of the engine's event loop and of a front's."""
    engine, context = Engine(), get_context("fork")
    pairs = [socket.socketpair() for _ in range(fronts)]
    pipes = [context.Pipe() for _ in range(fronts)]
    processes = [
        context.Process(target=run_front, args=(theirs, clients, seconds, pipe[1]))
        for (_, theirs), pipe in zip(pairs, pipes, strict=True)
    ]
    for process in processes:
        process.start()

    async with engine.batcher:
        with engine.hub() as hub:
            started, begun = time.monotonic(), time.thread_time()
            for ours, _ in pairs:
                hub.take(ours)
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(*(loop.run_in_executor(None, pipe[0].recv) for pipe in pipes))
            spent, wall = time.thread_time() - begun, time.monotonic() - started
    for process in processes:
        process.join()
    rows = sum(answered for answered, _ in found)
    return rows / wall, spent / rows * 1e3, sum(front for _, front in found) / rows * 1e3


def cost(arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Measure and print the cost per row."""
    one = [uvloop.run(in_one_process(arguments.clients, arguments.seconds)) for _ in range(arguments.rounds)]
    many = [uvloop.run(with_fronts(1, arguments.clients, arguments.seconds)) for _ in range(arguments.rounds)]
    together = min(one)
    engine, front = min(engine for _, engine, _ in many), min(front for *_, front in many)
    print("CPU time per row of one event loop, ms, rows of 150 kB, answers of 9 kB")
    print(f"| one process: plane, queue, accounting | {together:.3f} |")
    print(f"| workers: the engine process | {engine:.3f} |")
    print(f"| workers: a front, without HTTP and decoding | {front:.3f} |")
    print(f"| an engine process ends near | {1e3 / engine:,.0f} rows a second |")
    return together, engine, front


def scale(arguments: argparse.Namespace) -> None:
    """Print what the measured costs mean for larger hosts."""
    _, engine, front = cost(arguments)
    per_front = front + FRONT_MS["HTTP"]
    print(
        "\nfronts | rows/s by event loops | by 64 cores of a CPU engine (10 ms a row) | beside a GPU of 20,000 rows/s"
    )
    for fronts in (1, 2, 4, 6, 8, 16, 32, 64):
        loops = fronts * 1e3 / per_front
        cpu = min(loops, 64e3 / (10 + per_front + FRONT_MS["decoding"] + engine), 1e3 / engine)
        gpu = min(loops, 64e3 / (per_front + FRONT_MS["decoding"] + engine), 1e3 / engine, 20_000)
        print(f"{fronts} | {loops:,.0f} | {cpu:,.0f} | {gpu:,.0f}")


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cost", "scale"))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    serve_rather_than_compute()  # as servers do
    {"cost": cost, "scale": scale}[arguments.what](arguments)


if __name__ == "__main__":
    main()
