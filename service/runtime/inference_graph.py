"""From a Keras model to the frozen graph that serves it: uint8 rows in, logits and routing weights out, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from service.domain import Preprocessing
from service.runtime.lowering import CPU, Lowering, lower

INPUT, LOGITS, ROUTING = "rows", "logits", "routing"


@dataclass(frozen=True, slots=True)
class InferenceGraph:
    """A frozen TensorFlow graph: weights are constants, so its engine can pack them once.

    Its tensors are `rows:0` uint8 `[B, image_size, image_size, 3]`, `logits:0` float32 `[B, classes]` and `routing:0`
    float32 `[B, blocks, num_experts]`; `B` is open.
    """

    graph_def: Any
    image_size: int


def freeze(model: keras.Model, preprocessing: Preprocessing, *, lowering: Lowering = CPU) -> InferenceGraph:
    """Build the inference graph of a functional model that returns `logits` and `routing`.

    Args:
        model: takes normalised pixels `[B, image_size, image_size, 3]`.
        preprocessing: its mean and standard deviation go into the graph.
        lowering: which operations to use.
    """
    size = preprocessing.image_size
    lowered = lower(model, lowering)

    def infer(rows: Any) -> dict[str, Any]:
        pixels = (tf.cast(rows, tf.float32) - preprocessing.mean) / preprocessing.std
        outputs = lowered(pixels, training=False)
        routing = list(outputs["routing"].values())
        stacked = tf.stack(routing, axis=1) if routing else tf.zeros((tf.shape(rows)[0], 0, 0))
        return {LOGITS: tf.identity(outputs["logits"], LOGITS), ROUTING: tf.identity(stacked, ROUTING)}

    signature = tf.TensorSpec((None, size, size, 3), tf.uint8, INPUT)
    function = tf.function(infer, autograph=False).get_concrete_function(signature)
    if function.captured_inputs:  # layers that `lower` doesn't know keep their variables
        function = convert_variables_to_constants_v2(function)
    return InferenceGraph(function.graph.as_graph_def(), size)
