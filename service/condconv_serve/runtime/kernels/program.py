"""Banks and programs: a convolution's packed weights, and what the native kernels compute in one call.

A **bank** holds a convolution's weights, packed for this CPU. A **program** is a list of steps over numbered values;
its banks, values and steps are checked when it is made, so that running it can't go wrong. Build both from NumPy arrays
and the dataclasses below; `csrc/condconv.h` says what each field means.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi, library
from condconv_serve.runtime.kernels.abi import Activation, BankType, Place, StepKind, ValueType

__all__ = [
    "Activation",
    "Bank",
    "BankOptions",
    "BankType",
    "Place",
    "Program",
    "ProgramSpec",
    "Stage",
    "Step",
    "StepKind",
    "Value",
    "ValueType",
    "alive",
]

_DTYPES = {ValueType.UINT8: np.uint8, ValueType.FLOAT32: np.float32, ValueType.BFLOAT16: np.uint16}


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOptions:
    """How a convolution uses its weights.

    Attributes:
        mixed: one kernel per example, the sum of the experts by its routing weights. Otherwise there is one kernel.
        type: how the numbers are held. Depthwise weights are float32.
        strides: by height and width.
        dilations: by height and width.
    """

    mixed: bool = False
    type: BankType = BankType.FLOAT32
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One row of a tensor.

    Attributes:
        place: scratch, or an input or output of the program.
        type: of its numbers; bfloat16 only where the instruction set multiplies it.
        shape: without the batch: `(height, width, channels)` or `(channels,)`.
        number: which input or output it is.
        row_by_row: scratch of one row, since all steps that use it run row by row. Other scratch is of all rows of a
            chunk.
        offset: scratch: bytes from the start of its part, those of a chunk times the rows of the chunk; a multiple
            of 64 is best.
    """

    place: Place
    type: ValueType
    shape: tuple[int, ...]
    number: int = 0
    row_by_row: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happens to values. Values and banks are places in the program's lists; None: there is none.

    Attributes:
        kind: what is computed.
        input: value, `[height, width, channels]`, or `[channels]` where height and width are 1.
        output: value.
        routing: value `[num_experts]`, for a mixed bank.
        scale: value `[channels]`: factors of the input.
        residual: value like the output, added before the activation.
        pooled: value `[channels]`, float32: the output's mean over height and width; depthwise only.
        bank: the convolution's weights.
        producer: bank of the CONV whose output is a DEPTHWISE step's input.
        activation: of the output.
        producer_activation: of the producer's output.
        normalise: the input are pixels, and `(pixel - mean) * scale` comes before all else.
        height: of the input; so are `width` and `channels`.
        pad_top: rows of zeros above the bank's input; of nothing, for a MAX_POOL.
        pad_left: columns of zeros left of it.
        window_height: of a MAX_POOL; so are `window_width` and the strides of its windows.
        out_height: of the output; so is `out_width`.
        producer_pad_top: rows of zeros above the producer's input.
        producer_pad_left: columns of zeros left of it.
        producer_height: of the producer's output.
        producer_width: of the producer's output.
    """

    kind: StepKind
    input: int
    output: int
    routing: int | None = None
    scale: int | None = None
    residual: int | None = None
    pooled: int | None = None
    bank: int | None = None
    producer: int | None = None
    activation: Activation = Activation.LINEAR
    producer_activation: Activation = Activation.LINEAR
    normalise: bool = False
    height: int = 1
    width: int = 1
    channels: int
    pad_top: int = 0
    pad_left: int = 0
    window_height: int = 0
    window_width: int = 0
    window_stride_height: int = 0
    window_stride_width: int = 0
    out_height: int = 1
    out_width: int = 1
    producer_pad_top: int = 0
    producer_pad_left: int = 0
    producer_height: int = 0
    producer_width: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps `first` to `last - 1`, which run one row after the other, or with all rows of a chunk together."""

    first: int
    last: int
    row_by_row: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """What a program does.

    Attributes:
        values: all tensors; steps name them by their places here.
        steps: in the order in which they run.
        stages: cut the steps into groups, without gaps.
        chunk: rows that are computed together at most.
        row_bytes: of scratch that holds values of one row (`row_by_row`).
        chunk_bytes: of scratch for the other values, per row of a chunk.
        mean: of pixels, by channel, for steps that normalise.
        scale: of pixels, by channel: usually 1 over the standard deviation.
    """

    values: Sequence[Value]
    steps: Sequence[Step]
    stages: Sequence[Stage]
    chunk: int = 8
    row_bytes: int = 0
    chunk_bytes: int = 0
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


class Bank:
    """A convolution's weights, packed for the chosen instruction set. Close it, or let it be collected."""

    def __init__(
        self,
        experts: NDArray[Any],
        options: BankOptions | None = None,
        *,
        factor: NDArray[Any] | None = None,
        bias: NDArray[Any] | None = None,
        expert_bias: NDArray[Any] | None = None,
    ) -> None:
        """Pack weights.

        The convolution yields `activation((kernel * input + mixed expert bias) * factor + bias)`.

        Args:
            experts: `[num_experts, height, width, in_channels, out_channels]`; without `in_channels`, one kernel per
                channel: a depthwise convolution. Anything that converts to float32.
            options: strides, dilations, and how the weights are used and held.
            factor: `[out_channels]`, or None: 1.
            bias: `[out_channels]`, or None: 0.
            expert_bias: `[num_experts, out_channels]`, mixed as kernels are, or None.

        Raises:
            ConfigurationError: the weights or the options can't be used, and why.
            NativeUnavailable: there is no native library.
        """
        options = options or BankOptions()
        if np.ndim(experts) not in (4, 5):
            raise ConfigurationError(f"Experts have 4 or 5 dimensions, not {np.ndim(experts)}.")
        num_experts, kernel_height, kernel_width, *channels = np.shape(experts)
        spec = abi.BankSpecStruct(
            depthwise=len(channels) == 1,
            num_experts=num_experts,
            mixed=options.mixed,
            type=options.type,
            in_channels=channels[0],
            out_channels=channels[-1],
            kernel_height=kernel_height,
            kernel_width=kernel_width,
            stride_height=options.strides[0],
            stride_width=options.strides[1],
            dilation_height=options.dilations[0],
            dilation_width=options.dilations[1],
        )
        out = channels[-1:]
        arrays = [
            _weights("experts", experts, np.shape(experts)),
            _weights("factor", factor, out),
            _weights("bias", bias, out),
            _weights("expert_bias", expert_bias, [num_experts, *out]),
        ]
        native = library.load()
        pointers = [None if array is None else array.ctypes.data for array in arrays]
        self.number = int(native.cc_bank_new(ctypes.byref(spec), *pointers))
        if self.number < 0:
            raise library.last_error()
        self._finalizer = _released_by(self, native.cc_bank_release, self.number)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights; 0 when closed."""
        return int(library.load().cc_bank_bytes(self.number)) if self._finalizer.alive else 0

    def close(self) -> None:
        """Give the bank back. Programs that use it keep it as long as they live."""
        self._finalizer()

    def __enter__(self) -> Self:
        """The bank itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class Program:
    """Steps that run in one call. Close it, or let it be collected.

    Attributes:
        number: by which the library knows it.
        inputs: their values, in order.
        outputs: theirs.
    """

    def __init__(self, spec: ProgramSpec, banks: Sequence[Bank] = ()) -> None:
        """Check the steps, and keep them and the banks.

        Args:
            spec: what to compute.
            banks: of the chosen instruction set; steps name them by their places here. You may close them then.

        Raises:
            ConfigurationError: the spec doesn't fit together, and why.
            NativeUnavailable: there is no native library.
        """
        native = library.load()
        self.inputs = _numbered(spec.values, Place.INPUT)
        self.outputs = _numbered(spec.values, Place.OUTPUT)
        head = abi.ProgramSpecStruct(
            version=abi.VERSION,
            size_of_step=ctypes.sizeof(abi.StepStruct),
            size_of_value=ctypes.sizeof(abi.ValueStruct),
            values=len(spec.values),
            steps=len(spec.steps),
            stages=len(spec.stages),
            banks=len(banks),
            inputs=len(self.inputs),
            outputs=len(self.outputs),
            chunk=spec.chunk,
            row_bytes=spec.row_bytes,
            chunk_bytes=spec.chunk_bytes,
            mean=_by_channel("mean", spec.mean),
            scale=_by_channel("scale", spec.scale),
        )
        self.number = int(
            native.cc_program_new(
                ctypes.byref(head),
                (abi.ValueStruct * len(spec.values))(*map(_value_struct, spec.values)),
                (abi.StepStruct * len(spec.steps))(*map(_step_struct, spec.steps)),
                (abi.StageStruct * len(spec.stages))(*map(_stage_struct, spec.stages)),
                (ctypes.c_int64 * len(banks))(*(bank.number for bank in banks)),
            )
        )
        if self.number < 0:
            raise library.last_error()
        self._finalizer = _released_by(self, native.cc_program_release, self.number)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute a batch on this thread, and on free threads of the library.

        Args:
            inputs: `[rows, *shape]` of each input value, in its type. Bfloat16 are the bits, as uint16.

        Returns:
            Each output, likewise.

        Raises:
            ConfigurationError: an input has another shape or type, the program is closed, or there is no memory.
        """
        rows = len(inputs[0]) if len(inputs) else 0
        if len(inputs) != len(self.inputs):
            raise ConfigurationError(f"The program takes {len(self.inputs)} inputs, not {len(inputs)}.")
        for number, (array, value) in enumerate(zip(inputs, self.inputs, strict=True)):
            wanted, dtype = (rows, *value.shape), np.dtype(_DTYPES[value.type])
            if array.shape != wanted or array.dtype != dtype:
                found = f"{array.dtype} {array.shape}"
                raise ConfigurationError(f"Input {number} of the program is {dtype} {wanted}, not {found}.")
        if not self._finalizer.alive:
            raise ConfigurationError("The program is closed.")
        packed = [np.ascontiguousarray(array) for array in inputs]
        outputs = [np.empty((rows, *value.shape), _DTYPES[value.type]) for value in self.outputs]
        if library.load().cc_program_run(self.number, rows, _pointers(packed), _pointers(outputs)) < 0:
            raise library.last_error()
        return outputs

    def close(self) -> None:
        """Give the program back. Operations of TensorFlow that use it keep it as long as they live."""
        self._finalizer()

    def __enter__(self) -> Self:
        """The program itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def alive() -> tuple[int, int]:
    """How many banks and programs there are in this process.

    Raises:
        NativeUnavailable: there is no native library.
    """
    native = library.load()
    return int(native.cc_banks_alive()), int(native.cc_programs_alive())


def _weights(name: str, array: NDArray[Any] | None, shape: Sequence[int]) -> NDArray[np.float32] | None:
    """Weights as C reads them."""
    if array is None:
        return None
    if np.shape(array) != tuple(shape):
        raise ConfigurationError(f"{name} has the shape {np.shape(array)}, and {tuple(shape)} is needed.")
    return np.ascontiguousarray(array, np.float32)


def _by_channel(name: str, numbers: Sequence[float]) -> tuple[float, ...]:
    if len(numbers) > abi.MAX_NORMALISED_CHANNELS:
        raise ConfigurationError(
            f"Pixels have at most {abi.MAX_NORMALISED_CHANNELS} channels, and {name} has {len(numbers)}."
        )
    return tuple(numbers)


def _numbered(values: Sequence[Value], place: Place) -> list[Value]:
    """The inputs, or outputs, in the order of their numbers. Whether these are complete, C checks."""
    return sorted((value for value in values if value.place == place), key=lambda value: value.number)


def _value_struct(value: Value) -> abi.ValueStruct:
    rank = len(value.shape)
    shape = value.shape if rank <= 3 else value.shape[:3]
    return abi.ValueStruct(value.place, value.number, value.type, rank, shape, value.row_by_row, value.offset)


def _stage_struct(stage: Stage) -> abi.StageStruct:
    return abi.StageStruct(stage.first, stage.last, stage.row_by_row)


def _step_struct(step: Step) -> abi.StepStruct:
    numbers = {field.name: getattr(step, field.name) for field in fields(step)}
    return abi.StepStruct(**{name: -1 if number is None else number for name, number in numbers.items()})


def _pointers(arrays: Sequence[NDArray[Any]]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _released_by(handle: object, release: Any, number: int) -> weakref.finalize[..., Any]:
    """Calls `release(number)` once, at the latest when the handle is collected. Exits needn't wait for it."""
    finalizer = weakref.finalize(handle, release, number)
    finalizer.atexit = False
    return finalizer
