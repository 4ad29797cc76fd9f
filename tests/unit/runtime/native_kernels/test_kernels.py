"""Every kernel of every instruction set against plain NumPy, over random shapes, beside forbidden pages."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.abi import Activation, BankType, Place, StepKind, ValueType
from condconv_serve.runtime.kernels.program import Bank, BankOptions, Program, ProgramSpec, Stage, Step, Value
from tests.unit.runtime.native_kernels import fuzz, references
from tests.unit.runtime.native_kernels.memory import guarded

Array = NDArray[Any]
ACTIVATION = st.sampled_from(list(Activation))
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 2e-5, 3e-2
MEAN, STD = np.array([127.0, 120.0, 100.0]), np.array([128.0, 60.0, 50.0])
EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        try:
            names: Sequence[str] = library.isas()
        except library.NativeUnavailable as error:
            metafunc.parametrize("isa", [pytest.param("", marks=pytest.mark.skip(reason=str(error)))], indirect=True)
        else:
            metafunc.parametrize("isa", names, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.isa()
    library.use_isa(request.param)
    yield request.param
    library.use_isa(before)


@dataclass
class Layer:
    """A convolution's weights, its bank's options, and what it computes in NumPy."""

    experts: Array
    options: BankOptions
    factor: Array
    bias: Array
    expert_bias: Array | None

    def bank(self) -> Bank:
        return Bank(self.experts, self.options, factor=self.factor, bias=self.bias, expert_bias=self.expert_bias)

    def __call__(self, x: Array, routing: Array, at: references.Geometry) -> Array:
        mixing = routing if self.options.mixed else None
        y = references.convolve(x, references.mix(self.experts, mixing, len(x)), at)
        if self.expert_bias is not None:
            y = y + (routing.astype(np.float64) @ self.expert_bias)[:, None, None]
        return y * self.factor + self.bias


@dataclass
class Case:
    """One step with all that it reads, drawn at random; programs are put together from it."""

    draw: Any
    rng: np.random.Generator
    rows: int
    bfloat16: bool
    values: list[Value] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    scratch: int = 0

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def choice(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def input(self, array: Array) -> int:
        kind = ValueType.UINT8 if array.dtype == np.uint8 else ValueType.FLOAT32
        self.values.append(Value(place=Place.INPUT, type=kind, shape=array.shape[1:], number=len(self.inputs)))
        self.inputs.append(array)
        return len(self.values) - 1

    def inner(self, shape: tuple[int, ...], kind: ValueType) -> int:
        """A value in scratch."""
        self.values.append(Value(place=Place.SCRATCH, type=kind, shape=shape, offset=self.scratch))
        self.scratch += -(-int(np.prod(shape)) * 4 // 64) * 64
        return len(self.values) - 1

    def features(self, array: Array) -> int:
        """An input as the steps read it: float32, or bfloat16."""
        given = self.input(array)
        if not self.bfloat16:
            return given
        shape = array.shape[1:]
        narrow = self.inner(shape, ValueType.BFLOAT16)
        self.steps.append(Step(kind=StepKind.CONVERT, input=given, output=narrow, **sizes(shape), **out(shape[:2])))
        return narrow

    def run(
        self, step: Step, shape: tuple[int, ...], banks: Sequence[Bank], pooled: bool, chunk: int, at_end: bool
    ) -> list[Array]:
        """Run the step with all that comes before it; its output is a new value, and so is `pooled`."""
        outputs = [Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=shape)]
        result = len(self.values)
        self.values += outputs
        after = []
        if self.bfloat16:
            narrow = self.inner(shape, ValueType.BFLOAT16)
            after.append(Step(kind=StepKind.CONVERT, input=narrow, output=result, **sizes(shape), **out(shape[:2])))
        else:
            narrow = result
        places = {"output": narrow}
        if pooled:
            outputs.append(Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=shape[-1:], number=1))
            self.values.append(outputs[-1])
            places["pooled"] = len(self.values) - 1
        fields = {name: getattr(step, name) for name in Step.__dataclass_fields__}
        steps = [*self.steps, Step(**{**fields, **places}), *after]
        spec = ProgramSpec(
            values=self.values,
            steps=steps,
            stages=[Stage(0, len(steps))],
            chunk=chunk,
            chunk_bytes=self.scratch,
            mean=tuple(MEAN),
            scale=tuple(1 / STD),
        )
        program = Program(spec, banks)
        for bank in banks:
            bank.close()
        inputs = [guarded(array, at_end=at_end) for array in self.inputs]
        results = [guarded(np.full((self.rows, *value.shape), np.nan, np.float32), at_end=at_end) for value in outputs]
        status = library.load().cc_program_run(program.number, self.rows, pointers(inputs), pointers(results))
        program.close()
        assert status == 0, library.last_error()
        return results


def pointers(arrays: Sequence[Array]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def sizes(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"height": shape[0], "width": shape[1], "channels": shape[2]}


def out(size: tuple[int, ...], prefix: str = "out") -> dict[str, Any]:
    return {f"{prefix}_height": size[0], f"{prefix}_width": size[1]}


def draw_case(draw: Any, isa: str) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bfloat16 = library.has_bfloat16() and draw(st.booleans())
    return Case(draw, rng, draw(st.integers(1, 9)), bfloat16)


def draw_layer(case: Case, channels: int, filters: int | None, kernel: tuple[int, int], num_experts: int) -> Layer:
    """A layer of `channels` and `filters`, or a depthwise one."""
    mixed = case.choice(True, False)
    experts_shape = (num_experts if mixed else 1, *kernel, channels, *(() if filters is None else (filters,)))
    depth = kernel[0] * kernel[1] * (channels if filters else 1)
    experts = case.rng.normal(0, depth**-0.5, experts_shape).astype(np.float32)
    kind = BankType.FLOAT32
    if filters is not None and case.bfloat16:
        kind = BankType.BFLOAT16
    elif filters is not None and mixed and case.choice(True, False):
        kind, experts = BankType.FLOAT16, experts.astype(np.float16).astype(np.float32)
    strides, dilations = case.choice((1, 1), (1, 1), (2, 2), (1, 3)), case.choice((1, 1), (1, 1), (1, 1), (2, 1))
    count = filters or channels
    return Layer(
        experts=experts,
        options=BankOptions(mixed=mixed, type=kind, strides=strides, dilations=dilations),
        factor=case.rng.uniform(0.5, 1.5, count).astype(np.float32),
        bias=case.rng.normal(size=count).astype(np.float32),
        expert_bias=case.rng.normal(size=(num_experts, count)).astype(np.float32)
        if mixed and case.choice(True, False)
        else None,
    )


def draw_kernel(case: Case) -> tuple[int, int]:
    size = case.choice((1, 1), (1, 1), (3, 3), (5, 5), None)
    return size or (case.number(1, 7), case.number(1, 4))


def draw_input(case: Case, channels: int, pixels: bool, sides: tuple[int, int] = (1, 20)) -> tuple[Array, Array]:
    """An input with sides of these lengths, and what the step makes of it before all else, in float64."""
    shape = (case.rows, case.number(*sides), case.number(*sides), channels)
    if not pixels:
        x = case.rng.normal(size=shape).astype(np.float32)
        return x, (references.to_bfloat16(x) if case.bfloat16 else x).astype(np.float64)
    x = case.rng.integers(0, 256, shape).astype(case.choice(np.uint8, np.float32))
    normalised = ((x.astype(np.float64) - MEAN[:channels]) / STD[:channels]).astype(np.float32)
    return x, (references.to_bfloat16(normalised) if case.bfloat16 else normalised).astype(np.float64)


def check(case: Case, found: Array, wanted: Array) -> None:
    tolerance = BFLOAT16_TOLERANCE if case.bfloat16 else FLOAT32_TOLERANCE
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()))


def check_conv(case: Case, *, pixels: bool, channels: int, sides: tuple[int, int]) -> None:
    """Any convolution of an input with so many channels and sides of these lengths."""
    filters, kernel, num_experts = case.number(1, 70), draw_kernel(case), case.number(1, 9)
    x, normalised = draw_input(case, channels, pixels, sides)
    layer = draw_layer(case, channels, filters, kernel, num_experts)
    at = references.geometry(
        x.shape[1:3], kernel, layer.options.strides, layer.options.dilations, same=case.choice(True, False)
    )
    if at is None:
        return
    routing = case.rng.uniform(0, 1, (case.rows, num_experts)).astype(np.float32)
    activation = case.draw(ACTIVATION)
    places: dict[str, Any] = {"input": case.input(x) if pixels else case.features(x)}
    if layer.options.mixed:
        places["routing"] = case.input(routing)
    if kernel == (1, 1) and not pixels and case.choice(True, False):
        scale = case.rng.uniform(0, 2, (case.rows, channels)).astype(np.float32)
        places["scale"] = case.input(scale)
        normalised = normalised * scale[:, None, None]
    wanted = layer(normalised, routing, at)
    if case.choice(True, False):
        residual = case.rng.normal(size=wanted.shape).astype(np.float32)
        places["residual"] = case.features(residual)
        wanted = wanted + (references.to_bfloat16(residual) if case.bfloat16 else residual)
    step = Step(
        kind=StepKind.CONV, output=0, bank=0, activation=activation, normalise=pixels, **places, **sizes(x.shape[1:]),
        **out(at.out), pad_top=at.pads[0], pad_left=at.pads[1],
    )  # fmt: skip
    (found,) = case.run(step, wanted.shape[1:], [layer.bank()], False, case.number(1, 8), case.choice(True, False))
    check(case, found, references.ACTIVATIONS[activation](wanted))


@EXAMPLES
@given(data=st.data())
def test_conv_is_what_numpy_computes(isa: str, data: st.DataObject) -> None:
    case = draw_case(data.draw, isa)
    pixels = case.choice(False, False, False, True)
    channels = case.number(1, 3) if pixels else case.choice(case.number(1, 40), case.number(150, 450))
    check_conv(case, pixels=pixels, channels=channels, sides=(1, 20))


@settings(EXAMPLES, max_examples=30)
@given(data=st.data())
def test_conv_of_many_pixels_is_what_numpy_computes(isa: str, data: st.DataObject) -> None:
    case = draw_case(data.draw, isa)
    pixels = case.choice(False, False, True)
    channels = case.number(1, 3) if pixels else case.choice(case.number(1, 16), case.number(200, 240))
    library.use_threads(case.choice(1, 3, 8))
    library.load().cc_set_least_work(case.choice(1, fuzz.LEAST_WORK))
    try:
        check_conv(case, pixels=pixels, channels=channels, sides=(28, 44))
    finally:
        library.use_threads(1)
        library.load().cc_set_least_work(fuzz.LEAST_WORK)


@EXAMPLES
@given(data=st.data())
def test_depthwise_is_what_numpy_computes_with_or_without_a_producer(isa: str, data: st.DataObject) -> None:
    case = draw_case(data.draw, isa)
    fused = case.choice(True, False)
    pixels = fused and case.choice(False, True)
    channels = case.number(1, 3) if pixels else case.number(1, 80)
    filters, num_experts = (case.number(1, 70) if fused else channels), case.number(1, 9)
    x, y = draw_input(case, channels, pixels)
    routing = case.rng.uniform(0, 1, (case.rows, num_experts)).astype(np.float32)
    places: dict[str, Any] = {"input": case.input(x) if pixels else case.features(x)}
    banks: list[Bank] = []
    layers: list[Layer] = []
    if fused:
        kernel, activation = draw_kernel(case), case.draw(ACTIVATION)
        layers.append(producer := draw_layer(case, channels, filters, kernel, num_experts))
        options = producer.options
        at = references.geometry(
            x.shape[1:3], kernel, options.strides, options.dilations, same=case.choice(True, False)
        )
        if at is None:
            return
        y = references.ACTIVATIONS[activation](producer(y, routing, at))
        places |= {
            "producer": 1, "producer_activation": activation, **out(at.out, "producer"),
            "producer_pad_top": at.pads[0], "producer_pad_left": at.pads[1],
        }  # fmt: skip
    kernel, activation = draw_kernel(case), case.draw(ACTIVATION)
    layers.insert(0, layer := draw_layer(case, filters, None, kernel, num_experts))
    at = references.geometry(
        y.shape[1:3], kernel, layer.options.strides, layer.options.dilations, same=case.choice(True, False)
    )
    if at is None:
        return
    wanted = references.ACTIVATIONS[activation](layer(y, routing, at))
    banks += [made.bank() for made in layers]
    if any(made.options.mixed for made in layers):
        places["routing"] = case.input(routing)
    step = Step(
        kind=StepKind.DEPTHWISE, output=0, bank=0, activation=activation, normalise=pixels, **places,
        **sizes(x.shape[1:]), **out(at.out), pad_top=at.pads[0], pad_left=at.pads[1],
    )  # fmt: skip
    found, pooled = case.run(step, wanted.shape[1:], banks, True, case.number(1, 8), case.choice(True, False))
    check(case, found, wanted)
    check(case, pooled, wanted.mean(axis=(1, 2)))


@EXAMPLES
@given(data=st.data())
def test_steps_on_single_numbers_are_what_numpy_computes(isa: str, data: st.DataObject) -> None:
    case = draw_case(data.draw, isa)
    x, given_x = draw_input(case, case.number(1, 70), False)
    kind = case.choice(
        StepKind.POOL, StepKind.SCALE, StepKind.ADD, StepKind.ACTIVATE, StepKind.CONVERT, StepKind.MULTIPLY
    )
    places: dict[str, Any] = {"input": case.features(x)}
    wanted = given_x
    if kind is StepKind.SCALE:
        scale = case.rng.uniform(0, 2, (case.rows, x.shape[-1])).astype(np.float32)
        places["scale"], wanted = case.input(scale), given_x * scale[:, None, None]
    if kind in (StepKind.ADD, StepKind.MULTIPLY):
        other = case.rng.normal(size=x.shape).astype(np.float32)
        places["residual"] = case.features(other)
        other = references.to_bfloat16(other) if case.bfloat16 else other
        wanted = given_x + other if kind is StepKind.ADD else given_x * other
    if kind in (StepKind.ADD, StepKind.ACTIVATE):
        places["activation"] = case.draw(ACTIVATION)
        wanted = references.ACTIVATIONS[places["activation"]](wanted)
    if kind is StepKind.POOL:
        wanted = given_x.mean(axis=(1, 2))
    if kind in (StepKind.POOL, StepKind.CONVERT):
        case.bfloat16, rounded = False, case.bfloat16  # their output is float32
    size = (1, 1) if kind is StepKind.POOL else x.shape[1:3]
    step = Step(kind=kind, output=0, **places, **sizes(x.shape[1:]), **out(size))
    if kind is StepKind.CONVERT and not rounded:
        return  # from float32 to float32 is no conversion
    (found,) = case.run(step, wanted.shape[1:], [], False, case.number(1, 8), case.choice(True, False))
    check(case, found, wanted)


@EXAMPLES
@given(data=st.data())
def test_largest_numbers_are_what_numpy_finds(isa: str, data: st.DataObject) -> None:
    case = draw_case(data.draw, isa)
    x, given_x = draw_input(case, case.number(1, 40), False)
    kernel, strides = ((case.number(1, 4), case.number(1, 3)) for _ in range(2))
    size = x.shape[1:3]
    pads = [case.number(0, min(k - 1, 2)) for k in kernel]
    outs = [case.number(1, max(1, (n + p - 1) // s + 1)) for n, p, s in zip(size, pads, strides, strict=True)]
    step = Step(
        kind=StepKind.MAX_POOL,
        input=case.features(x),
        output=0,
        pad_top=pads[0],
        pad_left=pads[1],
        window_height=kernel[0],
        window_width=kernel[1],
        window_stride_height=strides[0],
        window_stride_width=strides[1],
        **sizes(x.shape[1:]),
        **out((outs[0], outs[1])),
    )
    wanted = np.stack([references.max_pool(row, step) for row in given_x])
    (found,) = case.run(step, wanted.shape[1:], [], False, case.number(1, 8), case.choice(True, False))
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


@pytest.mark.parametrize("activation", list(Activation))
def test_nan_and_infinities_come_out_as_the_formula_has_it(isa: str, activation: Activation) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 88, -88, 200, -200, 1e-40, -0.0, 3, -3, 6], np.float32)
    shape = (1, 1, len(x))
    program = Program(
        ProgramSpec(
            values=[
                Value(place=Place.INPUT, type=ValueType.FLOAT32, shape=shape),
                Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=shape),
            ],
            steps=[Step(kind=StepKind.ACTIVATE, input=0, output=1, activation=activation, channels=len(x))],
            stages=[Stage(0, 1)],
        )
    )
    (found,) = program.run([x.reshape(1, *shape)])
    with np.errstate(all="ignore"):
        wanted = references.ACTIVATIONS[activation](x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(found.ravel(), wanted, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("channels", [3, 130])
def test_the_largest_numbers_are_none_of_nan(isa: str, channels: int) -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, 6, 6, channels)).astype(np.float32)
    for row, column in ((0, 0), (1, 3), (4, 4), (4, 5), (5, 4)):  # first, last, and all but one of their windows
        x[:, row, column] = np.nan
    window: dict[str, Any] = {f"window_{name}": 2 for name in ("height", "width", "stride_height", "stride_width")}
    program = Program(
        ProgramSpec(
            values=[
                Value(place=Place.INPUT, type=ValueType.FLOAT32, shape=(6, 6, channels)),
                Value(place=Place.OUTPUT, type=ValueType.FLOAT32, shape=(3, 3, channels)),
            ],
            steps=[
                Step(
                    kind=StepKind.MAX_POOL,
                    input=0,
                    output=1,
                    height=6,
                    width=6,
                    channels=channels,
                    out_height=3,
                    out_width=3,
                    **window,
                )
            ],
            stages=[Stage(0, 1)],
        )
    )
    (found,) = program.run([x])
    np.testing.assert_array_equal(found, np.nanmax(x.reshape(1, 3, 2, 3, 2, channels), (2, 4)))
