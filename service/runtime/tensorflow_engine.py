"""The engine that is always there: TensorFlow runs the inference graph."""

from __future__ import annotations

import tensorflow as tf

from service.domain import ModelOutput, Pixels
from service.runtime.inference_graph import INPUT, LOGITS, ROUTING, InferenceGraph


class TensorFlowEngine:
    """Computes batches of an inference graph with TensorFlow, each on its caller's thread.

    Several threads may call at once; they share one copy of the weights.
    """

    def __init__(self, graph: InferenceGraph) -> None:
        """Load the graph; the first call of each batch size is slower."""
        # One thread per stream keeps mixed kernels and activations in that core's cache.
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=-1)
        tf_graph = tf.Graph()
        with tf_graph.as_default():
            tf.graph_util.import_graph_def(graph.graph_def, name="")
        self._session = tf.compat.v1.Session(graph=tf_graph, config=config)
        self._compute = self._session.make_callable([f"{LOGITS}:0", f"{ROUTING}:0"], feed_list=[f"{INPUT}:0"])

    def __call__(self, rows: Pixels) -> ModelOutput:
        """Compute uint8 `[B, image_size, image_size, 3]`."""
        logits, routing = self._compute(rows)
        return ModelOutput(logits, routing)

    def close(self) -> None:
        """Release the graph and its weights."""
        self._session.close()
