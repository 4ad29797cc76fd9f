"""Where the time of the native kernels goes: each step of a network's programs on its own, as a share of the peak.

Every step is a program of its own here, whose input comes from memory and whose output goes there. In the network's own
program neighbours share the cache, so the parts take longer than the whole, which is measured, too. Float32 only.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import peak
import report

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.program import Place, Program, ProgramSpec, Stage, Step, StepKind, Value, ValueType
from condconv_serve.runtime.tensorflow_import import import_tensorflow

DTYPES = {ValueType.UINT8: np.uint8, ValueType.FLOAT32: np.float32}


@dataclass(frozen=True, slots=True)
class Part:
    """A step as a program of its own; `multiply_adds` per row, mixing included."""

    name: str
    program: Program
    multiply_adds: int


def recording_kernels() -> Any:
    """Kernels that also make a program of each step; `parts` and `wholes` are what they made."""
    from condconv_serve.runtime.lowering.native.kernels import LibraryKernels

    class Recording(LibraryKernels):
        def __init__(self) -> None:
            self.parts: list[Part] = []
            self.wholes: list[Program] = []
            self._shapes: dict[int, tuple[tuple[int, ...], bool]] = {}

        def bank(self, experts: Any, options: Any, **weights: Any) -> Any:
            bank = super().bank(experts, options, **weights)
            self._shapes[id(bank)] = (experts.shape, options.mixed)
            return bank

        def program(self, spec: ProgramSpec, banks: Sequence[Any]) -> Any:
            shapes = [self._shapes[id(bank)] for bank in banks]
            for stage in spec.stages:
                for step in spec.steps[stage.first : stage.last]:
                    part = Program(*alone(spec, step, banks, row_by_row=stage.row_by_row))
                    self.parts.append(Part(describe(step, shapes), part, multiply_adds(step, shapes)))
            program = super().program(spec, banks)
            self.wholes.append(program)
            return program

    return Recording()


def alone(spec: ProgramSpec, step: Step, banks: Sequence[Any], *, row_by_row: bool) -> tuple[ProgramSpec, list[Any]]:
    """A program of one step, and its banks: what it reads are inputs, what it writes are outputs."""
    values: list[Value] = []
    places: dict[str, int | None] = {}
    known: dict[int, int] = {}
    for name in ("input", "routing", "scale", "residual"):
        number = getattr(step, name)
        if number is not None:
            if number not in known:
                known[number] = len(values)
                given = replace(spec.values[number], place=Place.INPUT, number=len(values), row_by_row=False, offset=0)
                values.append(given)
            places[name] = known[number]
    for count, name in enumerate(name for name in ("output", "pooled") if getattr(step, name) is not None):
        result = replace(spec.values[getattr(step, name)], place=Place.OUTPUT, number=count, row_by_row=False, offset=0)
        places[name] = len(values)
        values.append(result)
    own = [banks[number] for number in (step.bank, step.producer) if number is not None]
    places["bank"] = None if step.bank is None else 0
    places["producer"] = None if step.producer is None else len(own) - 1
    made = replace(
        spec,
        values=values,
        steps=[replace(step, **places)],
        stages=[Stage(0, 1, row_by_row)],
        row_bytes=0,
        chunk_bytes=0,
    )
    return made, own


def describe(step: Step, shapes: Sequence[tuple[tuple[int, ...], bool]]) -> str:
    """The kind of a step, as the table groups them."""

    def convolution(number: int) -> str:
        shape, mixed = shapes[number]
        kernel = f"{shape[1]}x{shape[2]}"
        what = "depthwise" if len(shape) == 4 else "convolution"
        return f"{'mixed ' * mixed}{what} {kernel}"

    if step.bank is None:
        return step.kind.name.lower()
    extras = [name for name in ("scale", "residual") if getattr(step, name) is not None]
    before = f"{convolution(step.producer)} + " if step.producer is not None else ""
    dense = step.kind is StepKind.CONV and step.height * step.width == 1
    own = "dense" if dense else convolution(step.bank)
    return before + own + "".join(f", {extra}" for extra in extras)


def multiply_adds(step: Step, shapes: Sequence[tuple[tuple[int, ...], bool]]) -> int:
    """Of the convolutions of a step, per row, mixing included."""
    total = 0
    sizes = ((step.bank, step.out_height, step.out_width), (step.producer, step.producer_height, step.producer_width))
    for number, height, width in sizes:
        if number is not None:
            shape, mixed = shapes[number]
            total += height * width * math.prod(shape[1:]) + (math.prod(shape) if mixed else 0)
    return total


def cpu_per_row(program: Program, *, rows: int, callers: int, seconds: float) -> float:
    """Seconds of processor time per row."""
    from condconv_serve.offline.throughput import measure

    rng = np.random.default_rng(0)
    inputs = []
    for value in program.inputs:
        shape = (rows, *value.shape)
        pixels = value.type is ValueType.UINT8
        given = rng.integers(0, 256, shape) if pixels else rng.uniform(0, 1, shape)
        inputs.append(given.astype(DTYPES[value.type]))
    measure(lambda _: program.run(inputs), callers=callers, rows_per_call=rows, seconds=seconds / 5)
    return measure(lambda _: program.run(inputs), callers=callers, rows_per_call=rows, seconds=seconds).cpu_per_row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="efficientnet-condconv-b0-8e")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="per step")
    parser.add_argument("--isa", help="an instruction set other than the best one")
    arguments = parser.parse_args()
    if arguments.isa:
        library.use_isa(arguments.isa)
    import_tensorflow()
    import keras

    from condconv_serve.domain import Preprocessing
    from condconv_serve.nn import build_network, get_architecture
    from condconv_serve.runtime.inference_graph import freeze
    from condconv_serve.runtime.lowering import NativeLowering

    keras.utils.set_random_seed(0)
    architecture = get_architecture(arguments.architecture)
    preprocessing = Preprocessing(transform="pillow", image_size=architecture.image_size)
    kernels = recording_kernels()
    graph = freeze(build_network(architecture), preprocessing, lowering=NativeLowering(kernels=kernels))
    print(f"{arguments.architecture}, {library.isa()}: {graph.native}", end="\n\n")
    peaks = peak.peak()
    limit = peak.best(peaks, "f32", isa=arguments.isa if arguments.isa in peaks else None)
    how = {"rows": arguments.batch_size, "callers": 1, "seconds": arguments.seconds}
    library.use_threads(1)
    whole = sum(cpu_per_row(program, **how) for program in kernels.wholes)
    groups: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for part in kernels.parts:
        groups[part.name].append((cpu_per_row(part.program, **how), part.multiply_adds))
    total = sum(cpu for found in groups.values() for cpu, _ in found)
    rows = []

    def row(name: str, steps: int, cpu: float, adds: int) -> list[str]:
        rate = [f"{2 * adds / cpu / 1e9:.0f}", f"{2 * adds / cpu / limit:.0%}" if limit else ""] if adds else ["", ""]
        return [name, str(steps), f"{cpu * 1e3:.3f}", f"{cpu / total:.0%}", f"{adds / 1e6:.1f}", *rate]

    for name, found in sorted(groups.items(), key=lambda group: -sum(cpu for cpu, _ in group[1])):
        rows.append(row(name, len(found), sum(cpu for cpu, _ in found), sum(adds for _, adds in found)))
    adds = sum(part.multiply_adds for part in kernels.parts)
    rows.append(row("all steps, one by one", len(kernels.parts), total, adds))
    rows.append(row("the programs as a whole", len(kernels.parts), whole, adds))
    header = ["step", "how many", "CPU ms per row", "share", "million multiply-adds", "GFLOP/s", "of the peak"]
    print(report.table(header, rows))


if __name__ == "__main__":
    main()
