"""Every registered architecture with native kernels, against TensorFlow's own operations, and OpenVINO if installed.

Each network has a process of its own, in which its engines take turns, round by round. Its weights are random, and the
engines must agree on its logits, or on its boxes and scores. Two callers or as many as there are cores, and a lone
image. Networks that were measured before on this machine are kept, so `--only` can measure them piece by piece.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import report
from random_networks import fill

SIZES = (1, 4, 8)
ENGINES = ("native", "tensorflow", *(("openvino",) if find_spec("openvino") else ()))
ANSWERS = ("logits", "boxes", "scores")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""How far answers may differ from TensorFlow's: root mean square, relative to theirs. Random networks magnify rounding
errors, of some rows a thousand times, so the largest difference says little."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """An engine of a network, and how it computes."""

    network: Any
    engine: Any
    plan: Any
    computed_by: Any


def contestant(name: str, engine: str, precision: str) -> Contestant:
    """A registered network with random weights in one of `ENGINES`. TensorFlow has been imported, with one thread."""
    from condconv_serve.domain import Preprocessing
    from condconv_serve.nn import build_network, get_architecture
    from condconv_serve.runtime.devices import detect_machine
    from condconv_serve.runtime.engines import build_engine
    from condconv_serve.runtime.plan import EngineOptions, make_plan

    architecture = get_architecture(name)
    network = build_network(architecture)
    fill(network)
    options = EngineOptions(
        device="cpu",
        precision=precision,
        engine="openvino" if engine == "openvino" else "tensorflow",
        native="on" if engine == "native" else "off",
        max_batch_size=max(SIZES),
    )
    plan = make_plan(detect_machine(look_for_accelerators=False), options)
    preprocessing = Preprocessing(transform="pillow", image_size=architecture.image_size)
    made, computed_by = build_engine(network, preprocessing, plan)
    if (computed_by.native.state == "used") != (engine == "native"):
        raise RuntimeError(str(computed_by))
    return Contestant(network, made, plan, computed_by)


def import_tensorflow() -> None:
    """Import it, with one thread for each stream."""
    from condconv_serve.runtime import tensorflow_import
    from condconv_serve.runtime.tensorflow_engine import limit_threads

    tensorflow_import.import_tensorflow()
    limit_threads(1)


def measure(name: str, precision: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One network in all engines: rows per second, processor time, milliseconds of a lone image, by round."""
    import_tensorflow()
    from condconv_serve.nn import cost, get_architecture
    from condconv_serve.offline.throughput import measure as measured
    from condconv_serve.runtime.answers import difference

    contestants = {engine: contestant(name, engine, precision) for engine in ENGINES}
    engines = {engine: one.engine for engine, one in contestants.items()}
    native = contestants["native"]
    layers = [native.computed_by.native.native_layers, native.computed_by.native.tensorflow_layers]
    figures = [f"b{b}{more}" for b in SIZES for more in ("", "_cpu_ms")]
    found: dict[str, Any] = {engine: {figure: [] for figure in (*figures, "lone_ms")} for engine in ENGINES}
    size = get_architecture(name).image_size
    rows = np.random.default_rng(0).integers(0, 256, (max(SIZES), size, size, 3), np.uint8)
    expected = engines["tensorflow"](rows)
    for engine, compute in engines.items():
        for output, off in difference(compute(rows), expected).items():
            if output in ANSWERS and not off <= TOLERANCE[precision]:
                raise RuntimeError(f"{name}: the {output} of {engine} are {off:.2g} off")
    for number in range(-1, rounds):
        for b in (*SIZES, 0):
            for engine, compute in engines.items():
                callers, batch = (native.plan.streams, rows[:b]) if b else (1, rows[:1])
                result = measured(
                    lambda caller, compute=compute, batch=batch: compute(batch, caller),
                    callers=callers,
                    rows_per_call=len(batch),
                    seconds=seconds if number >= 0 else 0.2,
                )
                if number < 0:  # warms up
                    continue
                if b:
                    found[engine][f"b{b}"].append(result.rows_per_second)
                    found[engine][f"b{b}_cpu_ms"].append(result.cpu_per_row * 1e3)
                else:
                    found[engine]["lone_ms"].append(result.latency_p50 * 1e3)
    return {"multiply_adds": cost(native.network).multiply_adds, "layers": layers, "engines": found}


def render(found: dict[str, Any]) -> str:
    """The table: what native kernels reach, and how much faster they are than the best of the others."""
    rows = []
    for name, network in found.items():
        native = network["engines"]["native"]
        others = {engine: figures for engine, figures in network["engines"].items() if engine != "native"}
        by_native, by_tensorflow = network["layers"]
        rows.append(
            [
                name,
                f"{network['multiply_adds'] / 1e6:.0f}M",
                f"{by_native} of {by_native + by_tensorflow}",
                " ".join(f"{median(native[f'b{size}']):.0f}" for size in SIZES),
                " ".join(_ratio(native, others, f"b{size}", more=True) for size in SIZES),
                " ".join(_ratio(native, others, f"b{size}_cpu_ms", more=False) for size in SIZES),
                f"{median(native['lone_ms']):.1f}",
                _ratio(native, others, "lone_ms", more=False),
            ]
        )
    sizes = ", ".join(map(str, SIZES))
    header = [
        "architecture",
        "multiply-adds",
        "native layers",
        f"rows/s, batch {sizes}",
        "over the best other",
        "by CPU time",
        "lone ms",
        "over the best other",
    ]
    return report.table(header, rows)


def nameless(spec: Any) -> Any:
    """An architecture without its name, and that of its backbone if it has one."""
    if hasattr(spec, "backbone"):
        spec = replace(spec, backbone=nameless(spec.backbone))
    return replace(spec, name="")


def static_twin(name: str, others: Iterable[str]) -> str | None:
    """The one of these networks that is a CondConv network without its experts."""
    from condconv_serve.nn import ARCHITECTURES

    spec: Any = ARCHITECTURES[name]
    static = nameless(spec.static())
    twins = [other for other in others if other != name and nameless(ARCHITECTURES[other]) == static]
    return twins[0] if twins and nameless(spec) != static else None


def render_twins(found: dict[str, Any]) -> str:
    """A table of CondConv networks over their static twins: by multiply-adds, and by processor time in each engine."""
    rows = []
    for name in found:
        static = static_twin(name, found)
        if static is None:
            continue
        ours, twin = found[name], found[static]
        rows.append([name, static, f"{twin['multiply_adds'] / ours['multiply_adds']:.2f}"])
        for engine in ENGINES:
            times = [(twin["engines"][engine], ours["engines"][engine], f"b{size}_cpu_ms") for size in SIZES]
            rows[-1].append(" ".join(f"{median(a[figure]) / median(b[figure]):.2f}" for a, b, figure in times))
    return report.table(["network", "static twin", "by multiply-adds", *ENGINES], rows)


def _ratio(native: dict[str, list[float]], others: dict[str, Any], figure: str, *, more: bool) -> str:
    """How many times better native is than the best other; `more`: of what more is better."""
    best = (max if more else min)((figures[figure] for figures in others.values()), key=median)
    fast, slow = (native[figure], best) if more else (best, native[figure])
    return f"{median(a / b for a, b in zip(fast, slow, strict=True)):.2f}"


def piece_by_piece(
    script: str, result: str, packages: Sequence[str], networks: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Measure each network by `script --one` and what is given for it, in a process of its own.

    Returns:
        These figures, and those that `result` has of this machine from before, in the registry's order.
    """
    from condconv_serve.nn import ARCHITECTURES

    note = report.machine(packages)
    before = report.load(result)
    found = before["networks"] if before and before["machine"] == note else {}
    for measured, given in networks.items():
        print(f"{measured} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-W", "ignore", script, *sys.argv[1:], "--one", *given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[measured] = json.loads(done.stdout.splitlines()[-1])
        found = {name: found[name] for name in ARCHITECTURES if name in found}
        report.save(result, {"machine": note, "networks": found})
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--only", default="", help="architectures whose name contains one of these, comma-separated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.precision, arguments.rounds, arguments.seconds)))
        return
    from condconv_serve.nn import ARCHITECTURES

    wanted = {name: (name,) for name in ARCHITECTURES if any(word in name for word in arguments.only.split(","))}
    result = f"native_architectures_{arguments.precision}"
    found = piece_by_piece(__file__, result, ("tensorflow-cpu", "openvino", "numpy"), wanted)
    print(f"{render(found)}\n\nCPU time over that of static twins, batch {', '.join(map(str, SIZES))}\n")
    print(f"{render_twins(found)}\n")
    print(f"wrote {report.RESULTS / result}.json")


if __name__ == "__main__":
    main()
