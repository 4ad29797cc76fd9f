"""What steps of programs mean, in NumPy: slow, and as plain as can be. It plans nothing and fuses nothing.

Values lie in memory as programs place them, so that values which overlap spoil each other here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.runtime.kernels.program import (
    Activation,
    BankOptions,
    BankType,
    Place,
    ProgramSpec,
    Step,
    StepKind,
    Value,
    ValueType,
)
from tests.unit.runtime.native_kernels import references

Array = NDArray[Any]

DTYPES: dict[ValueType, Any] = {
    ValueType.UINT8: np.uint8,
    ValueType.FLOAT32: np.float32,
    ValueType.BFLOAT16: ml_dtypes.bfloat16,
}
HELD: dict[BankType, Any] = {
    BankType.FLOAT32: np.float32,
    BankType.FLOAT16: np.float16,
    BankType.BFLOAT16: ml_dtypes.bfloat16,
}


def activate(x: Array, activation: Activation) -> Array:
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    hard_sigmoid = np.clip(x + 3, 0, 6) / 6
    return {
        Activation.LINEAR: x,
        Activation.RELU: np.maximum(x, 0),
        Activation.RELU6: np.clip(x, 0, 6),
        Activation.SWISH: x * sigmoid,
        Activation.HARD_SWISH: x * hard_sigmoid,
        Activation.SIGMOID: sigmoid,
        Activation.HARD_SIGMOID: hard_sigmoid,
    }[activation]


@dataclass(eq=False)
class NumpyBank:
    """Weights as they were given, rounded as a bank holds them."""

    kernels: NumpyKernels
    experts: Array
    options: BankOptions
    factor: Array | None
    bias: Array | None
    expert_bias: Array | None

    def __post_init__(self) -> None:
        held = self.experts.astype(HELD[self.options.type]).astype(np.float64)
        assert self.options.type is not BankType.FLOAT16 or (held == self.experts).all()
        self.experts = held
        self.depthwise = self.experts.ndim == 4
        self.kernels.open.append(self)

    def convolve(
        self, x: Array, routing: Array | None, pads: tuple[int, int], out_size: tuple[int, int], activation: Activation
    ) -> Array:
        """`[H, W, C]` of one row to what comes before the residual."""
        weights = np.ones(1) if routing is None else routing.astype(np.float64)
        assert self.options.mixed == (routing is not None)
        kernel = np.tensordot(weights, self.experts, 1)
        height, width = out_size
        (stride_y, stride_x), (dilation_y, dilation_x) = self.options.strides, self.options.dilations
        padded = np.zeros((x.shape[0] + 200, x.shape[1] + 200, x.shape[2]))
        padded[pads[0] : pads[0] + x.shape[0], pads[1] : pads[1] + x.shape[1]] = x
        result = np.zeros((height, width, kernel.shape[-1]))
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                y0, x0 = i * dilation_y, j * dilation_x
                tap = padded[
                    y0 : y0 + (height - 1) * stride_y + 1 : stride_y, x0 : x0 + (width - 1) * stride_x + 1 : stride_x
                ]
                result += tap * kernel[i, j] if self.depthwise else tap @ kernel[i, j]
        if self.expert_bias is not None:
            result += weights @ self.expert_bias
        result *= 1 if self.factor is None else self.factor
        result += 0 if self.bias is None else self.bias
        return result

    def close(self) -> None:
        if self in self.kernels.open:
            self.kernels.open.remove(self)


@dataclass(eq=False)
class NumpyProgram:
    kernels: NumpyKernels
    spec: ProgramSpec
    banks: Sequence[NumpyBank]
    calls: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kernels.open.append(self)
        self.kernels.programs.append(self)
        self.outputs = sorted((v for v in self.spec.values if v.place is Place.OUTPUT), key=lambda v: v.number)
        ends = [stage.last for stage in self.spec.stages]
        assert [stage.first for stage in self.spec.stages] == [0, *ends[:-1]]
        assert ends[-1] == len(self.spec.steps)

    def close(self) -> None:
        if self in self.kernels.open:
            self.kernels.open.remove(self)

    def in_graph(self, inputs: Sequence[Any]) -> list[Any]:
        def call(*arrays: Array) -> list[Array]:
            assert self in self.kernels.open, "the program is closed"
            return self.run(arrays)

        self.calls.append(call)  # TensorFlow keeps it no longer than the graph that it was first in
        outputs = tf.numpy_function(call, list(inputs), [tf.float32] * len(self.outputs))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        for output, value in zip(outputs, self.outputs, strict=True):
            output.set_shape((None, *value.shape))
        return list(outputs)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        rows = len(inputs[0])
        outputs = [np.full((rows, *value.shape), np.nan, np.float32) for value in self.outputs]
        for start in range(0, rows, self.spec.chunk):
            chunk = slice(start, start + self.spec.chunk)
            _Chunk(self, [one[chunk] for one in inputs], [one[chunk] for one in outputs]).run()
        return outputs


class _Chunk:
    def __init__(self, program: NumpyProgram, inputs: list[Array], outputs: list[Array]) -> None:
        self.spec, self.banks, self.inputs, self.outputs = program.spec, program.banks, inputs, outputs
        self.rows = len(inputs[0])
        self.row_scratch = np.full(self.spec.row_bytes, 0xFF, np.uint8)
        self.chunk_scratch = np.full(self.spec.chunk_bytes * self.rows, 0xFF, np.uint8)

    def run(self) -> None:
        for stage in self.spec.stages:
            steps = self.spec.steps[stage.first : stage.last]
            if stage.row_by_row:
                for row in range(self.rows):
                    for step in steps:
                        self.step(step, row)
            else:
                for step in steps:
                    for row in range(self.rows):
                        self.step(step, row)

    def value(self, number: int | None, row: int) -> Array:
        """One row of a value, in its place."""
        assert number is not None
        value: Value = self.spec.values[number]
        if value.place is Place.INPUT:
            assert self.inputs[value.number].dtype == DTYPES[value.type]
            found: Array = self.inputs[value.number][row]
        elif value.place is Place.OUTPUT:
            found = self.outputs[value.number][row]
        else:
            dtype = np.dtype(DTYPES[value.type])
            size = int(np.prod(value.shape)) * dtype.itemsize
            if value.row_by_row:
                memory = self.row_scratch[value.offset : value.offset + size]
            else:
                at = value.offset * self.rows + row * size
                memory = self.chunk_scratch[at : at + size]
            assert len(memory) == size, "a value lies beyond the scratch memory"
            found = memory.view(dtype).reshape(value.shape)
        assert found.shape == value.shape
        return found

    def maybe(self, number: int | None, row: int) -> Array | None:
        return None if number is None else self.value(number, row).astype(np.float64).reshape(-1)

    def step(self, step: Step, row: int) -> None:
        size = (step.height, step.width, step.channels)
        given = self.value(step.input, row)
        assert size in (given.shape, (1, 1, *given.shape)), "as the library wants it"
        raw = given.astype(np.float64).reshape(size)
        residual = self.maybe(step.residual, row)
        scale = self.maybe(step.scale, row)
        output = self.value(step.output, row)
        if step.kind in (StepKind.CONV, StepKind.DEPTHWISE):
            result = self.convolution(step, raw, row, residual, scale)
        elif step.kind is StepKind.POOL:
            result = raw.mean((0, 1))
        elif step.kind is StepKind.MAX_POOL:
            result = references.max_pool(raw, step)
        elif step.kind is StepKind.SCALE:
            assert scale is not None
            result = raw * scale
        elif step.kind is StepKind.ADD:
            assert residual is not None
            result = activate(raw + residual.reshape(size), step.activation)
        elif step.kind is StepKind.MULTIPLY:
            assert residual is not None
            result = raw * residual.reshape(size)
        elif step.kind is StepKind.ACTIVATE:
            result = activate(raw, step.activation)
        else:
            types = {self.spec.values[number].type for number in (step.input, step.output)}
            assert types == {ValueType.FLOAT32, ValueType.BFLOAT16}
            result = raw
        output[...] = result.reshape(output.shape).astype(output.dtype)
        if step.pooled is not None:
            pooled = self.value(step.pooled, row)
            pooled[...] = result.mean((0, 1)).reshape(pooled.shape)

    def convolution(self, step: Step, x: Array, row: int, residual: Array | None, scale: Array | None) -> Array:
        if step.normalise:
            x = (x - np.array(self.spec.mean)) * np.array(self.spec.scale)
        if scale is not None:
            assert step.kind is StepKind.CONV
            x = x * scale
        routing = self.maybe(step.routing, row)
        assert step.bank is not None
        bank = self.banks[step.bank]
        assert bank.depthwise == (step.kind is StepKind.DEPTHWISE)
        if step.producer is not None:
            producer = self.banks[step.producer]
            self.check_type(producer, step)
            x = activate(
                producer.convolve(
                    x,
                    routing if producer.options.mixed else None,
                    (step.producer_pad_top, step.producer_pad_left),
                    (step.producer_height, step.producer_width),
                    step.producer_activation,
                ),
                step.producer_activation,
            )
        else:
            self.check_type(bank, step)
        result = bank.convolve(
            x,
            routing if bank.options.mixed else None,
            (step.pad_top, step.pad_left),
            (step.out_height, step.out_width),
            step.activation,
        )
        if residual is not None:
            assert step.kind is StepKind.CONV
            result = result + residual.reshape(result.shape)
        return activate(result, step.activation)

    def check_type(self, bank: NumpyBank, step: Step) -> None:
        """A convolution multiplies what its bank holds."""
        found = self.spec.values[step.input].type
        half = bank.options.type is BankType.BFLOAT16
        assert step.normalise or bank.depthwise or half == (found is ValueType.BFLOAT16)


@dataclass(eq=False)
class NumpyKernels:
    """Takes the place of the native library. `open` has what isn't closed, `programs` all that were made."""

    open: list[Any] = field(default_factory=list)
    programs: list[NumpyProgram] = field(default_factory=list)

    def isa(self) -> str:
        return "numpy"

    def bank(self, experts: Array, options: BankOptions, **weights: Array | None) -> NumpyBank:
        return NumpyBank(self, experts, options, **weights)

    def program(self, spec: ProgramSpec, banks: Sequence[Any]) -> NumpyProgram:
        return NumpyProgram(self, spec, banks)

    @property
    def steps(self) -> list[Step]:
        """All steps of all programs."""
        return [step for program in self.programs for step in program.spec.steps]
