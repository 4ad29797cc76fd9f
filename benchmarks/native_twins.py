"""Every registered CondConv network over its static twin, both with native kernels, in turns in one process.

Figures that are measured minutes apart drift with the machine, and so do their ratios; these hardly do. Weights are
random, and as many callers compute as there are streams.
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

import numpy as np
import report
from native_architectures import (
    SIZES,
    TOLERANCE,
    Contestant,
    contestant,
    import_tensorflow,
    piece_by_piece,
    static_twin,
)


def measure(ours: str, static: str, precision: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of processor time a row of both, by batch size and round."""
    import_tensorflow()
    from condconv_serve.nn import cost
    from condconv_serve.offline.throughput import measure as measured

    contestants = {name: contestant(name, "native", precision) for name in (static, ours)}

    def cpu_ms(one: Contestant, size: int, time: float) -> float:
        side = one.network.input_shape[1]
        rows = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
        result = measured(
            lambda caller: one.engine(rows, caller), callers=one.plan.streams, rows_per_call=size, seconds=time
        )
        return result.cpu_per_row * 1e3

    found: dict[str, dict[str, list[float]]] = {name: {f"b{size}": [] for size in SIZES} for name in contestants}
    for number in range(-1, rounds):
        for size in SIZES:
            for name, one in contestants.items():
                taken = cpu_ms(one, size, seconds if number >= 0 else 0.2)
                if number >= 0:  # the first one warms up
                    found[name][f"b{size}"].append(taken)
    adds = {name: cost(one.network).multiply_adds for name, one in contestants.items()}
    return {"static": static, "multiply_adds": adds[static] / adds[ours], "cpu_ms": [found[static], found[ours]]}


def render(networks: dict[str, Any]) -> str:
    """A table of ratios: medians over the rounds."""
    rows = []
    for name, network in networks.items():
        static, ours = network["cpu_ms"]
        ratios = [
            f"{median(a / b for a, b in zip(static[f'b{size}'], ours[f'b{size}'], strict=True)):.2f}" for size in SIZES
        ]
        rows.append([name, network["static"], f"{network['multiply_adds']:.2f}", *ratios])
    return report.table(["network", "static twin", "by multiply-adds", *(f"batch {size}" for size in SIZES)], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="per measurement")
    parser.add_argument("--only", default="", help="networks whose name contains one of these, comma-separated")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.precision, arguments.rounds, arguments.seconds)))
        return
    from condconv_serve.nn import ARCHITECTURES

    wanted = {
        name: (name, static)
        for name in ARCHITECTURES
        if any(word in name for word in arguments.only.split(","))
        and (static := static_twin(name, ARCHITECTURES)) is not None
    }
    result = f"native_twins_{arguments.precision}"
    networks = piece_by_piece(__file__, result, ("tensorflow-cpu", "numpy"), wanted)
    print(render(networks), end="\n\n")


if __name__ == "__main__":
    main()
