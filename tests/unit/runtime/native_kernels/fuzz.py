"""Makes banks and programs of random numbers, and runs those that aren't refused: whatever happens, nothing crashes.

    python -m tests.unit.runtime.native_kernels.fuzz 500

runs so many examples. With a library of its own, such as one with sanitizers:

    LD_PRELOAD=$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
        python -m tests.unit.runtime.native_kernels.fuzz 2000 path/to/libcondconv.so

Each example is written to standard error before it is tried, so the last one is the one that crashed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from numpy.typing import NDArray

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi, library
from condconv_serve.runtime.kernels.abi import Activation, BankType, Place, StepKind, ValueType
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, ProgramSpec, Stage, Step, Value, alive
from tests.unit.runtime.native_kernels.blocks import Block

MOST_NUMBERS = 1 << 20
"""In a bank that is made."""

LEAST_WORK = 1 << 18
"""Multiply-adds that are worth a task: as the library has it at first."""

EXTREMES = [
    -(2**31),
    -(2**31) + 1,
    -64,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    63,
    64,
    65,
    2**16,
    2**24,
    2**31 - 64,
    2**31 - 1,
]

counts = {"banks": 0, "refused banks": 0, "programs": 0, "refused programs": 0}


def say(*what: object) -> None:
    print(*what, file=sys.stderr, flush=True)


@st.composite
def banks(draw: st.DrawFn) -> dict[str, int]:
    """Fields of a bank's spec: small numbers that fit, and some that don't."""
    channels = st.integers(1, 70)
    fields = {
        "depthwise": draw(st.integers(0, 1)),
        "num_experts": draw(st.integers(1, 9)),
        "mixed": draw(st.integers(0, 1)),
        "type": draw(st.integers(0, 2)),
        "in_channels": draw(channels),
        "out_channels": draw(channels),
    }
    for name in ("kernel", "stride", "dilation"):
        for side in ("height", "width"):
            fields[f"{name}_{side}"] = draw(st.integers(1, 5))
    if draw(st.booleans()):
        fields["out_channels"] = fields["in_channels"]
    if not fields["mixed"] and draw(st.booleans()):
        fields["num_experts"] = 1
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)):
        fields[name] = draw(st.sampled_from(EXTREMES))
    return fields


def try_bank(fields: dict[str, int], weights: int) -> None:
    """Make a bank as C has it. `weights` are bits: with factor, bias, expert biases."""
    native = library.load()
    inner = 1 if fields["depthwise"] == 1 else max(fields["in_channels"], 0)
    sides = [max(fields[name], 0) for name in ("num_experts", "kernel_height", "kernel_width", "out_channels")]
    numbers = inner * int(np.prod(np.array(sides, object)))
    if numbers > MOST_NUMBERS and all(0 < side < 2**20 for side in (inner, *sides)):
        return  # it may be good, and is too large to be made here
    room = np.full(min(numbers, MOST_NUMBERS) + 1, 0.5, np.float32)
    out = np.full(max(sides[0] * sides[3], sides[3], 1) if sides[0] * sides[3] < MOST_NUMBERS else 1, 2.0, np.float32)
    optional = [out.ctypes.data if weights >> i & 1 else None for i in range(3)]
    spec = abi.BankSpecStruct(**fields)
    number = native.cc_bank_new(ctypes.byref(spec), room.ctypes.data, *optional)
    counts["banks" if number >= 0 else "refused banks"] += 1
    if number >= 0:
        assert native.cc_bank_bytes(number) > 0
        native.cc_bank_release(number)
    else:
        assert library.last_error().args[0]


def one_step(draw: Any) -> tuple[ProgramSpec, list[Bank]]:
    """A convolution of any geometry, perhaps with a producer."""
    small = st.integers(1, 4)
    kind = draw(st.sampled_from([StepKind.CONV, StepKind.DEPTHWISE]))
    depthwise, producing = kind == StepKind.DEPTHWISE, kind == StepKind.DEPTHWISE and draw(st.booleans())
    normalise = draw(st.booleans()) and (producing or not depthwise)
    # What multiplies bfloat16 reads bfloat16, but for pixels; outputs may be either.
    half = library.has_bfloat16() and draw(st.booleans())
    channels = draw(st.integers(1, 4)) if normalise else draw(st.integers(1, 40))
    middle, experts = draw(st.integers(1, 40)), draw(st.integers(1, 4))

    def convolution(height: int, width: int, inner: int, out: int | None, mixed: bool) -> tuple[Bank, list[int]]:
        kernel, strides, dilations = ((draw(small), draw(small)) for _ in range(3))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        pads = [draw(st.integers(0, r - 1)) for r in reach]
        sizes = [
            draw(st.integers(1, max(1, (n + p - 1) // s + 1)))
            for n, p, s in zip((height, width), pads, strides, strict=True)
        ]
        shape = (experts if mixed else 1, *kernel, inner) + (() if out is None else (out,))
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        kinds = [BankType.BFLOAT16] if half else [BankType.FLOAT32, *([BankType.FLOAT16] if mixed else [])]
        kind = BankType.FLOAT32 if out is None else draw(st.sampled_from(kinds))
        options = BankOptions(mixed=mixed, type=kind, strides=strides, dilations=dilations)
        biases = rng.normal(size=(shape[0], shape[-1])) if mixed and draw(st.booleans()) else None
        return Bank(rng.normal(size=shape), options, expert_bias=biases), [*pads, *sizes]

    height, width = draw(st.one_of(st.integers(1, 12), st.integers(20, 40))), draw(st.integers(1, 12))
    if draw(st.integers(0, 9)) == 0:
        height, width = draw(st.integers(31, 40)), draw(st.integers(33, 40))
    mixed = draw(st.booleans())
    made: list[Bank] = []
    fields: dict[str, Any] = {}
    size = (height, width)
    if producing:
        mixed_too = draw(st.booleans())
        bank, (top, left, h, w) = convolution(height, width, channels, middle, mixed_too)
        made.append(bank)
        fields = {"producer_pad_top": top, "producer_pad_left": left, "producer_height": h, "producer_width": w}
        size = (h, w)
    inner = middle if producing else channels
    out = inner if depthwise else draw(st.integers(1, 40))
    bank, (top, left, h, w) = convolution(*size, inner, None if depthwise else out, mixed)
    made.append(bank)
    floats = ValueType.FLOAT32
    read = draw(st.sampled_from([ValueType.UINT8, floats])) if normalise else ValueType.BFLOAT16 if half else floats
    written = ValueType.BFLOAT16 if library.has_bfloat16() and draw(st.booleans()) else floats
    values = [
        Value(place=Place.INPUT, type=read, shape=(height, width, channels)),
        Value(place=Place.INPUT, type=floats, shape=(experts,), number=1),
        Value(place=Place.INPUT, type=written, shape=(h, w, out), number=2),
        Value(place=Place.INPUT, type=floats, shape=(channels,), number=3),
        Value(place=Place.OUTPUT, type=written, shape=(h, w, out)),
        Value(place=Place.OUTPUT, type=floats, shape=(out,), number=1),
    ]
    steps = [
        Step(
            kind=kind, input=0, output=4, bank=len(made) - 1, producer=0 if producing else None, height=height,
            width=width, channels=channels, pad_top=top, pad_left=left, out_height=h, out_width=w, normalise=normalise,
            routing=1 if mixed or (producing and mixed_too) else None, residual=2 if draw(st.booleans()) else None,
            scale=3 if draw(st.integers(0, 3)) == 0 else None, activation=draw(st.sampled_from(list(Activation))),
            **fields,
        ),
        Step(kind=StepKind.POOL, input=4, output=5, height=h, width=w, channels=out),
    ]  # fmt: skip
    if draw(st.booleans()):
        kernel, strides = (draw(small), draw(small)), (draw(small), draw(small))
        ends = [draw(st.integers(1, (n - 1) // s + 1)) for n, s in zip((h, w), strides, strict=True)]
        values.append(Value(place=Place.OUTPUT, type=written, shape=(*ends, out), number=2))
        steps.append(
            Step(
                kind=StepKind.MAX_POOL, input=4, output=6, height=h, width=w, channels=out, window_height=kernel[0],
                window_width=kernel[1], window_stride_height=strides[0], window_stride_width=strides[1],
                out_height=ends[0], out_width=ends[1],
            )
        )  # fmt: skip
    if depthwise:
        steps[0] = dataclasses.replace(steps[0], residual=None, scale=None)
        if draw(st.booleans()):
            steps = [dataclasses.replace(steps[0], pooled=5), *steps[2:]]
    rows = draw(st.booleans())
    stages = [Stage(0, len(steps), rows)]
    return ProgramSpec(values=values, steps=steps, stages=stages, mean=(1,) * 3, scale=(2,) * 3, chunk=3), made


def mutated(draw: Any, spec: ProgramSpec) -> ProgramSpec:
    """The spec with some of its numbers changed."""
    lists: dict[str, Any] = {name: list(getattr(spec, name)) for name in ("values", "steps", "stages")}
    own: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(["values", "steps", "steps", "steps", "stages", "spec"]))
        number = st.sampled_from(EXTREMES)
        if name == "spec":
            own[draw(st.sampled_from(["chunk", "row_bytes", "chunk_bytes"]))] = draw(number)
            continue
        place = draw(st.integers(0, len(lists[name]) - 1))
        item = lists[name][place]
        field = draw(st.sampled_from([f.name for f in dataclasses.fields(item)]))
        old = getattr(item, field)
        if field == "shape":
            change = tuple(draw(st.lists(number, max_size=4))) if draw(st.booleans()) else (*old[:-1], draw(number))
        else:
            near = [int(old or 0) + step for step in range(-2, 3)]
            change = draw(st.one_of(st.sampled_from(near), st.sampled_from(near), number))
        lists[name][place] = dataclasses.replace(item, **{field: change})
    return dataclasses.replace(spec, **lists, **own)


def array_of(value: Value, rows: int) -> NDArray[Any]:
    rng = np.random.default_rng(rows)
    shape = (rows, *value.shape)
    if value.type == ValueType.FLOAT32:
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, 256, shape).astype(np.uint8 if value.type == ValueType.UINT8 else np.uint16)


def try_program(spec: ProgramSpec, made: list[Bank], rows: int) -> None:
    """Make it, and run it if that is allowed, with all its memory a little too small to hide anything."""
    try:
        program = Program(spec, made)
    except ConfigurationError:
        counts["refused programs"] += 1
        return
    counts["programs"] += 1
    with program:
        if sum(int(np.prod(value.shape, dtype=np.int64)) for value in spec.values) < MOST_NUMBERS:
            outputs = program.run([array_of(value, rows) for value in program.inputs])
            assert all(len(output) == rows for output in outputs)


def run(examples: int) -> None:
    """Try so many examples of each kind."""
    limits = settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 1000, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @limits
    @given(banks(), st.integers(0, 7))
    def some_banks(fields: dict[str, int], weights: int) -> None:
        say("bank", fields, weights)
        try_bank(fields, weights)

    @limits
    @given(st.data())
    def some_programs(data: st.DataObject) -> None:
        library.use_isa(data.draw(st.sampled_from(library.isas())))
        library.use_threads(data.draw(st.integers(1, 7)))
        library.load().cc_set_least_work(data.draw(st.sampled_from([1, 1000, LEAST_WORK])))
        if data.draw(st.booleans()):
            block = Block(size=data.draw(st.integers(1, 7)), expanded=data.draw(st.integers(1, 40)))
            spec, made = block.spec(chunk=2, row_by_row=data.draw(st.booleans())), block.banks()
        else:
            spec, made = one_step(data.draw)
        spec, rows = mutated(data.draw, spec), data.draw(st.integers(0, 5))
        say("program", library.isa(), spec, rows)
        try_program(spec, made, rows)
        for bank in made:
            bank.close()

    before, isa = alive(), library.isa()
    try:
        some_banks()
        some_programs()
    finally:
        library.use_isa(isa)
        library.use_threads(1)
        library.load().cc_set_least_work(LEAST_WORK)
    assert alive() == before
    print(counts)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore", HypothesisWarning)
    if len(sys.argv) > 2:
        library.LIBRARY = Path(sys.argv[2])
    run(int(sys.argv[1]))
