"""Runs programs of native kernels in a TensorFlow graph, beside the operations that stay TensorFlow's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from condconv_serve.domain import NativeUse, Preprocessing
from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.kernels.program import ValueType
from condconv_serve.runtime.lowering.cpu import CPU
from condconv_serve.runtime.lowering.lowered import Closeable, Lowered
from condconv_serve.runtime.lowering.native.assembly import Assembly, Pixels, assemble
from condconv_serve.runtime.lowering.native.kernels import Kernels, LibraryKernels, NativeProgram
from condconv_serve.runtime.lowering.native.segments import NO_CONVOLUTION, Schedule, schedule
from condconv_serve.runtime.lowering.native.tensors import Tensors
from condconv_serve.runtime.lowering.native.weights import pack
from condconv_serve.runtime.lowering.tensorflow_calls import TensorFlowCalls, Values, input_values, output_values

Tensor = Any

MAX_NAMED = 3
"""How many reasons are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLowering:
    """Programs of native kernels; TensorFlow's own operations, as on any CPU, compute what no kernel does.

    Attributes:
        bfloat16: whether maps are bfloat16, and convolutions multiply bfloat16.
        kernels: what computes.
    """

    bfloat16: bool = False
    kernels: Kernels = field(default_factory=LibraryKernels)

    @property
    def constants(self) -> bool:
        """Whether the weights that TensorFlow still needs become constants of the graph."""
        return True


def lower_natively(graph: ModelGraph, lowering: NativeLowering, preprocessing: Preprocessing | None) -> Lowered:
    """See `lower`.

    Raises:
        NativeUnavailable: the kernels can't be used.
    """
    isa = lowering.kernels.isa()
    tensors = Tensors(graph)
    plan = schedule(graph, tensors)
    pixels = None if preprocessing is None else _pixels(graph, preprocessing)
    programs = _programs(plan, tensors, lowering, pixels)
    native = {id(call) for node in plan.nodes for call in node.calls}
    calls = TensorFlowCalls(
        graph, CPU, but=[call for call in graph.calls if id(call) in native or id(call) in tensors.aliases]
    )

    def compute(inputs: Sequence[Tensor]) -> Any:
        values = input_values(graph, inputs, preprocessing)
        for segment, hosted in zip(plan.segments, programs, strict=True):
            for call in segment.calls:
                for tensor in call.inputs:
                    _take_shape(tensor, tensors, values)
                calls.compute(call, values)
            if hosted is not None:
                hosted(values, inputs[0])
        for tensor in keras.tree.flatten(graph.output):
            _take_shape(tensor, tensors, values)
        return output_values(graph, values)

    return Lowered(
        compute=compute,
        stateless=calls.stateless,
        resources=tuple(hosted.program for hosted in programs if hosted is not None),
        native=_use(plan, native_layers=len(native), isa=isa),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Hosted:
    """A program, and which tensors it reads and computes."""

    program: NativeProgram
    inputs: tuple[tuple[Tensor | None, tuple[int, ...]], ...]
    outputs: tuple[Tensor, ...]

    def __call__(self, values: Values, rows: Tensor) -> None:
        given = [
            rows if tensor is None else tf.reshape(tf.cast(values[id(tensor)], tf.float32), (-1, *shape))
            for tensor, shape in self.inputs
        ]
        results = self.program.in_graph(given)
        for tensor, result in zip(self.outputs, results, strict=True):
            values[id(tensor)] = tf.reshape(result, (-1, *tensor.shape[1:]))


def _programs(
    plan: Schedule, tensors: Tensors, lowering: NativeLowering, pixels: Pixels | None
) -> list[_Hosted | None]:
    """A program for each segment that has nodes. If one can't be made, none is left."""
    with contextlib.ExitStack() as made, contextlib.ExitStack() as packed:
        banks: dict[Any, Closeable] = {}

        def bank(key: Any, make: Callable[[], Closeable]) -> Closeable:
            """Layers that are called twice have one bank, but a dense layer has one for each shape of map."""
            if key not in banks:
                banks[key] = make()
                packed.callback(banks[key].close)
            return banks[key]

        hosted: list[_Hosted | None] = []
        for number, segment in enumerate(plan.segments):
            if not segment.nodes:
                hosted.append(None)
                continue
            assembly = assemble(
                segment.nodes, bfloat16=lowering.bfloat16, pixels=pixels, is_wanted=_wanted(plan, tensors, number)
            )
            own = [
                bank(
                    (id(one.layer), id(one.norm), one.kernel, products),
                    lambda one=one, products=products: pack(one, lowering.kernels, products=products),  # type: ignore[misc]
                )
                for one, products in assembly.banks
            ]
            program = lowering.kernels.program(assembly.spec, own)
            made.callback(program.close)
            hosted.append(_hosted(program, assembly))
        made.pop_all()
        return hosted


def _hosted(program: NativeProgram, assembly: Assembly) -> _Hosted:
    shapes = {value.number: value.shape for value in assembly.spec.values if value.place.name == "INPUT"}
    inputs = tuple((tensor, shapes[number]) for number, tensor in enumerate(assembly.inputs))
    return _Hosted(program, inputs, assembly.outputs)


def _wanted(plan: Schedule, tensors: Tensors, number: int) -> Callable[[Tensor], bool]:
    """Whether anything but the nodes of a segment reads a tensor."""
    others = {id(tensors.root(tensor)) for call in plan.calls for tensor in call.inputs}
    for place, segment in enumerate(plan.segments):
        if place != number:
            others |= {id(tensor) for node in segment.nodes for tensor in node.inputs}
    return lambda tensor: id(tensor) in others or tensors.is_output(tensor)


def _pixels(graph: ModelGraph, preprocessing: Preprocessing) -> Pixels:
    return Pixels(
        tensor=graph.inputs[0],
        type=ValueType.UINT8 if preprocessing.row_type is np.uint8 else ValueType.FLOAT32,
        mean=preprocessing.mean,
        scale=tuple(1 / deviation for deviation in preprocessing.std),
    )


def _take_shape(tensor: Tensor, tensors: Tensors, values: Values) -> None:
    """Have a value for a tensor that is another one, perhaps in another shape."""
    root = tensors.root(tensor)
    if id(tensor) in values:
        return
    value = values[id(root)]
    values[id(tensor)] = value if root.shape == tensor.shape else tf.reshape(value, (-1, *tensor.shape[1:]))


def _use(plan: Schedule, *, native_layers: int, isa: str) -> NativeUse:
    """What the kernels compute, and why not all."""
    layers = list(plan.calls)
    # What was the cause comes first.
    by_cause = sorted(layers, key=lambda call: plan.reasons[id(call)] == NO_CONVOLUTION)
    reasons = [f"{type(call.operation).__name__} {call.operation.name}: {plan.reasons[id(call)]}" for call in by_cause]
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    reason = "; ".join(reasons[:MAX_NAMED]) + more
    if not native_layers:
        return NativeUse(state="unsupported", reason=reason or "it has no layer", tensorflow_layers=len(layers))
    return NativeUse(
        state="used",
        reason=reason or "they compute every layer",
        isa=isa,
        native_layers=native_layers,
        tensorflow_layers=len(layers),
    )
