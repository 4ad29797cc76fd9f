"""The operation of TensorFlow that runs a program as part of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.library import NativeUnavailable
from condconv_serve.runtime.kernels.program import Program, ValueType

OPERATION = "CondconvProgram"
"""Inputs `rows: Tin`, outputs `values: Tout`, attributes `program: int`, `Tin: list(type)`, `Tout: list(type)`."""

_TYPES = {ValueType.UINT8: "uint8", ValueType.FLOAT32: "float32", ValueType.BFLOAT16: "bfloat16"}


def register() -> None:
    """Make the operation known to TensorFlow, which must have been imported. Doing so again does nothing.

    Raises:
        NativeUnavailable: there is no native library, or it doesn't fit this TensorFlow.
    """
    native = library.load()
    if native.cc_register() < 0:
        raise NativeUnavailable(native.cc_error().decode(errors="replace"))


def run_in_graph(program: Program, inputs: Sequence[Any], name: str | None = None) -> list[Any]:
    """Add the operation to TensorFlow's default graph.

    The graph may be used as long as the process lives: each session's kernel keeps the program. No kernel is made after
    the program was closed.

    Args:
        program: what to run.
        inputs: symbolic tensors `[batch, *shape]`, one per input of the program.
        name: of the operation.

    Returns:
        One symbolic tensor `[batch, *shape]` per output of the program.

    Raises:
        NativeUnavailable: see `register`.
    """
    import tensorflow as tf

    register()
    types = [_TYPES[value.type] for value in program.outputs]

    def type_list(names: Sequence[str]) -> Any:
        numbers = [tf.as_dtype(name).as_datatype_enum for name in names]
        return tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(type=numbers))

    attributes = {
        "program": tf.compat.v1.AttrValue(i=program.number),
        "Tin": type_list([_TYPES[value.type] for value in program.inputs]),
        "Tout": type_list(types),
    }
    made = tf.compat.v1.get_default_graph().create_op(OPERATION, list(inputs), types, name=name, attrs=attributes)
    for output, value in zip(made.outputs, program.outputs, strict=True):
        output.set_shape((None, *value.shape))
    return list(made.outputs)
