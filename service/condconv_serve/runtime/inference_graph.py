"""Makes the frozen graph that serves a Keras model: rows in, all outputs and routing weights out, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from condconv_serve.domain import FEATURES, LOGITS, ROUTING, NativeUse, Preprocessing
from condconv_serve.runtime.lowering import CPU, Closeable, Lowered, Lowering, NativeLowering, lower
from condconv_serve.runtime.outputs import output_specs, with_features

INPUT = "rows"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class InferenceGraph:
    """A frozen TensorFlow graph: weights are constants, so its engine can pack them once.

    Its tensors are `rows:0` of `row_type` `[B, image_size, image_size, 3]`, `logits:0` float32 `[B, classes]` and
    `routing:0` float32 `[B, blocks, num_experts]`, where a block with fewer experts than another is filled up with
    zeros; `B` is open. If `outputs` names them, there are also `features:0` float32 `[B, features]`. A detector has
    `boxes:0` float32 `[B, anchors, 4]` and `scores:0` float32 `[B, anchors, classes]` for logits. Engines must not
    keep it: it holds a copy of all weights. They keep the `resources` that it refers to, and close them. `native` says
    what native kernels compute.
    """

    graph_def: Any
    image_size: int
    row_type: type[np.uint8] | type[np.float32] = np.uint8
    outputs: tuple[str, ...] = (LOGITS, ROUTING)
    resources: tuple[Closeable, ...] = ()
    native: NativeUse = field(default_factory=NativeUse)


def freeze(
    model: keras.Model, preprocessing: Preprocessing, *, lowering: Lowering | NativeLowering = CPU
) -> InferenceGraph:
    """Build the inference graph of a functional model: a classifier, with features if it has any, or a detector.

    Args:
        model: takes normalised pixels `[B, image_size, image_size, 3]`.
        preprocessing: gives the mean and the standard deviation, which go into the graph, and the type of the rows.
        lowering: which operations to use.

    Raises:
        ConfigurationError: the model is not functional.
    """
    size, row_type = preprocessing.image_size, preprocessing.row_type
    lowered = lower(with_features(model), lowering, preprocessing=preprocessing)
    graph_def = _graph(lowered, size, row_type, constants=lowering.constants and lowered.stateless)
    return InferenceGraph(
        graph_def,
        size,
        row_type,
        outputs=tuple(output.name for output in output_specs(model)),
        resources=lowered.resources,
        native=lowered.native,
    )


def _graph(lowered: Lowered, size: int, row_type: Any, *, constants: bool) -> Any:
    infer = _inference(lowered)
    if not constants:  # there may be variables to freeze
        signature = tf.TensorSpec((None, size, size, 3), row_type, INPUT)
        function = tf.function(infer, autograph=False).get_concrete_function(signature)
        return convert_variables_to_constants_v2(function).graph.as_graph_def()
    with tf.Graph().as_default() as graph:  # without the copies of all weights that tf.function would leave behind
        infer(tf.compat.v1.placeholder(row_type, (None, size, size, 3), INPUT))
    return graph.as_graph_def()


def inference_function(
    model: keras.Model, preprocessing: Preprocessing, lowering: Lowering
) -> Callable[[Any], dict[str, Any]]:
    """Return what the inference graph computes, as a function of rows that TensorFlow can trace.

    Args:
        model: as for `freeze`.
        preprocessing: as for `freeze`.
        lowering: which operations to use.

    Raises:
        ConfigurationError: the model is not functional.
    """
    return _inference(lower(with_features(model), lowering, preprocessing=preprocessing))


def _inference(lowered: Lowered) -> Callable[[Any], dict[str, Any]]:
    def infer(rows: Any) -> dict[str, Any]:
        with tf.name_scope("network"):  # whose layers may be called as the outputs are
            outputs = lowered(rows)
        routing = [tf.cast(weights, tf.float32) for weights in outputs["routing"].values()]
        stacked = _stack(routing) if routing else tf.zeros((tf.shape(rows)[0], 0, 0))
        found = {ROUTING: stacked} | {
            name: tf.cast(values, tf.float32) for name, values in outputs.items() if name != ROUTING
        }
        if FEATURES in found:
            found[FEATURES] = tf.reshape(found[FEATURES], (-1, found[FEATURES].shape[-1]))
        return {name: tf.identity(values, name) for name, values in found.items()}

    return infer


def _stack(routing: list[Any]) -> Any:
    """Stack `[B, experts]` of each block to `[B, blocks, num_experts]`; a block with fewer experts is filled with 0."""
    most = max(weights.shape[-1] for weights in routing)
    return tf.stack(
        [
            weights if weights.shape[-1] == most else tf.pad(weights, ((0, 0), (0, most - weights.shape[-1])))
            for weights in routing
        ],
        axis=1,
    )
