"""What routing statistics cost: throughput with and without them, in turns, and the time to count one image.

Two servers that differ in that setting only run side by side, and wrk asks one and then the other; what counts is the
median over many pairs. Where other programs want the cores, too, rows per second of processor time tell more than rows
per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import load
import numpy as np
import report
from service_load import Server, photo

from condconv_serve.domain import ClassScore, ImageResult, Prediction, RoutingLayout, RoutingTrace, Timings
from condconv_serve.routing.recent import RecentRequest, RecentRequests
from condconv_serve.routing.statistics import RoutingStatistics

GOAL = 0.97
SHAPES = {"Lite0-4e": (8, 4), "B0-8e": (8, 8), "40 blocks, 64 experts": (40, 64)}


def cpu_seconds(server: Server) -> float:
    """Processor time that a server has used so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(server: Server, file: Path, script: str, options: argparse.Namespace) -> dict[str, float]:
    """Rows per second, and per second of the server's processor time."""
    before = cpu_seconds(server)
    found = load.wrk(
        f"{server.url}/predict", str(file), clients=options.clients, seconds=options.seconds, script=script
    )
    return {"rate": found.rate, "per_cpu_second": found.rate * options.seconds / (cpu_seconds(server) - before)}


def pairs(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """What was measured with and without statistics, by round."""
    with tempfile.TemporaryDirectory() as scratch:
        file, script = Path(scratch) / "photo.jpg", str(Path(scratch) / "post.lua")
        file.write_bytes(photo())
        servers = {
            name: Server(routing_statistics=options.control or name == "with", engine=options.engine)
            for name in ("with", "without")
        }
        found = []
        try:
            for number in range(-1, options.rounds):  # the first one warms up
                order = list(servers)[:: 1 if number % 2 else -1]
                pair = {name: measure(servers[name], file, script, options) for name in order}
                if number >= 0:
                    found.append(pair)
                    print(
                        "  ".join(
                            f"{name}: {pair[name]['rate']:.1f}/s, {pair[name]['per_cpu_second']:.1f}/CPU s"
                            for name in servers
                        ),
                        flush=True,
                    )
        finally:
            for server in servers.values():
                server.stop()
        return found


def microseconds_per_image(shape: tuple[int, int], images: int = 4000) -> float:
    """Time to count one image, with a thousand classes; the best of five."""
    rng = np.random.default_rng(0)
    routing = rng.random((64, *shape)).astype(np.float32)
    classes = rng.integers(0, 1000, images).tolist()
    layout = RoutingLayout(tuple(f"block_{i}" for i in range(shape[0])), (shape[1],) * shape[0])
    best = float("inf")
    for _ in range(5):
        statistics = RoutingStatistics(layout)
        started = time.perf_counter()
        for number, index in enumerate(classes):
            statistics.observe(routing[number % 64], index)
        statistics.read(classes=False)
        best = min(best, time.perf_counter() - started)
    return best / images * 1e6


def microseconds_per_request(images: int = 4000) -> float:
    """Time to remember one request of one image; the best of five."""
    prediction = Prediction(
        classes=(ClassScore(0, "a", None, 1.0),) * 5,
        routing=RoutingTrace(
            RoutingLayout(tuple(f"block_{i}" for i in range(8)), (8,) * 8), np.zeros((8, 8), np.float32)
        ),
        timings=Timings(decode=0, queue=0, inference=0, total=0),
        batch_size=4,
    )
    best = float("inf")
    for _ in range(5):
        recent = RecentRequests()
        started = time.perf_counter()
        for number in range(images):
            result = ImageResult(id="0", filename=None, prediction=prediction)
            request = RecentRequest(request_id=str(number), model="m", version="1", at=0.0, results=(result,))
            recent.remember(request, owner=None)
        best = min(best, time.perf_counter() - started)
    return best / images * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--control", action="store_true", help="both with statistics, to see what chance makes of it")
    parser.add_argument("--engine", default="tensorflow")
    options = parser.parse_args()
    counted = {name: microseconds_per_image(shape) for name, shape in SHAPES.items()}
    counted["a recent request kept"] = microseconds_per_request()
    print(report.table(("counting", "µs per image"), [(name, f"{us:.1f}") for name, us in counted.items()]))
    found = pairs(options)
    ratios = {}
    for figure in ("rate", "per_cpu_second"):
        each = [pair["with"][figure] / pair["without"][figure] for pair in found]
        low, _, high = quantiles(each, n=4)
        ratios[figure] = {"median": median(each), "quartiles": [low, high]}
        print(
            f"{figure}: median ratio {median(each):.3f}, quartiles {low:.3f} to {high:.3f}; goal {GOAL}: "
            f"{report.verdict(median(each) >= GOAL)}"
        )
    report.save(
        "routing_cost_control" if options.control else "routing_cost",
        {
            "machine": report.machine(("tensorflow-cpu", "numpy")),
            "options": vars(options),
            "microseconds_per_image": counted,
            "rounds": found,
            "ratios": ratios,
            "goal": GOAL,
        },
    )


if __name__ == "__main__":
    main()
