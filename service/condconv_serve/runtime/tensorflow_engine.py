"""The engine that is always there: TensorFlow runs the frozen graph on the CPU."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from condconv_serve.domain import Row, Tensors
from condconv_serve.errors import OutOfMemory
from condconv_serve.runtime.inference_graph import INPUT, InferenceGraph
from condconv_serve.runtime.plan import Precision

logger = logging.getLogger(__name__)


def limit_threads(threads: int) -> None:
    """Give every kernel of this process that many threads; to be called before TensorFlow computes anything.

    All sessions share one pool of threads. The first computation makes it, and later settings don't count. With a
    larger pool, each stream would pass its work to threads that the others use, too.
    """
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        logger.warning("TensorFlow computes already, so its number of threads can't change; streams may be slower")


def return_memory() -> None:
    """Have TensorFlow give back what it frees; to be called before it computes anything.

    Otherwise its oneDNN kernels keep all memory that they ever used, as much as three copies of the weights. Keeping it
    is faster, so call this only if TensorFlow prepares what another engine computes.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")


@contextlib.contextmanager
def reporting_memory() -> Iterator[None]:
    """Say in our own words that TensorFlow found no memory.

    Raises:
        OutOfMemory: it found none.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OutOfMemory("The engine is out of memory.", retry_after=5.0) from error


def open_session(graph: Any, *, precision: Precision = "float32", threads: int = 1) -> Any:
    """Make a session for a graph that never changes, to compute on its callers' threads."""
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=-1)
    # It needn't keep copies of the graph, and of all weights with them.
    config.experimental.optimize_for_static_graph = True
    config.experimental.disable_output_partition_graphs = True
    rewriting = config.graph_options.rewrite_options
    if precision == "bfloat16":
        rewriting.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    else:
        # Folding what is constant, and fusing: the other passes gain nothing and copy all the weights once more.
        rewriting.optimizers.extend(["constfold", "remap"])
        rewriting.meta_optimizer_iterations = RewriterConfig.ONE
    return tf.compat.v1.Session(graph=graph, config=config)


class TensorFlowEngine:
    """Computes batches of an inference graph, each on its caller's thread.

    Several threads may call at once; they share one copy of the weights.
    """

    def __init__(self, graph: InferenceGraph, *, precision: Precision = "float32", threads_per_stream: int = 1) -> None:
        """Load the graph and optimise it; the first call of each batch size is slower.

        Args:
            graph: what to compute.
            precision: bfloat16 lets Grappler convert the operations that gain from it.
            threads_per_stream: 1 keeps mixed kernels and activations in the cache of the stream's core.
        """
        self._row_type, self._outputs, self._resources = graph.row_type, graph.outputs, graph.resources
        tf_graph = tf.Graph()
        with tf_graph.as_default():
            tf.graph_util.import_graph_def(graph.graph_def, name="")
        self._session = open_session(tf_graph, precision=precision, threads=threads_per_stream)
        self._compute = self._session.make_callable([f"{name}:0" for name in graph.outputs], feed_list=[f"{INPUT}:0"])
        # The first call optimises the graph, which needs many copies of the weights; streams would all do so at once.
        self(np.zeros((1, graph.image_size, graph.image_size, 3), np.uint8))

    def __call__(self, rows: Row, stream: int = 0) -> Tensors:
        """Compute `[B, image_size, image_size, 3]`; any stream may."""
        with reporting_memory():
            found = self._compute(rows.astype(self._row_type, casting="safe", copy=False))
        return dict(zip(self._outputs, found, strict=True))

    def close(self) -> None:
        """Release the graph and its weights."""
        self._session.close()
        del self._session, self._compute  # code that still holds this engine must not hold the weights
        for resource in self._resources:
            resource.close()
