"""Computes one image with many routings: what the network would have said without an expert.

The network is cut in front of each CondConv block. What lies before the first block is computed once; every variant
starts as a copy of the image's own features at the first block that it changes, and from there on all variants go
through each block together, as rows of small batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from service.domain import ModelOutput, Preprocessing, RoutingOverrides, Row
from service.errors import BundleError
from service.runtime.inference_graph import per_channel
from service.runtime.lowering import CPU, lower
from service.runtime.tensorflow_engine import open_session, reporting_memory

MICRO_BATCH = 4
"""Rows computed at once: as for ordinary batches, more would leave the cache."""


class AblationEngine:
    """Computes variants of one image's routing, in float32 on TensorFlow, on the calling thread. One call at a time."""

    def __init__(self, network: keras.Model, preprocessing: Preprocessing) -> None:
        """Freeze the network in parts; it needs about as much memory as an engine of its own.

        Args:
            network: with its weights; its blocks are named as by `service.nn.mbconv`.
            preprocessing: its mean and standard deviation go into the graph.

        Raises:
            BundleError: the network is static, or can't be cut in front of its blocks.
        """
        blocks = _cuts(network)
        self._row_type = preprocessing.row_type
        self._experts = [block.routing.shape[-1] for block in blocks]
        ends = [*(block.features for block in blocks[1:]), network.output["logits"]]
        mean, scale = per_channel(preprocessing.mean), per_channel(tuple(1 / s for s in preprocessing.std))
        size = preprocessing.image_size
        prefix = _lowered(network.inputs[0], blocks[0].features)

        def infer() -> tuple[Any, list[Any]]:
            rows = tf.compat.v1.placeholder(self._row_type, (None, size, size, 3))
            return prefix((tf.cast(rows, tf.float32) - mean) * scale), [rows]

        self._prefix = _Part(infer)
        # Each block: features, weights (NaN is the model's own), uniform; to the next features, and the weights used.
        self._steps = [_Part(_step(block, end)) for block, end in zip(blocks, ends, strict=True)]
        # The first calls are slow.
        shape = (MICRO_BATCH, len(blocks), max(self._experts))
        self(
            np.zeros((size, size, 3), np.uint8),
            RoutingOverrides(np.zeros(shape, np.float32), np.zeros(shape[:2], np.bool_)),
        )

    def __call__(
        self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool] = lambda: False
    ) -> ModelOutput | None:
        """Compute one row with all variants.

        Args:
            row: `[image_size, image_size, 3]`.
            overrides: the routing of `V` variants; what a block has less experts than others is passed over.
            stopped: asked now and then whether nobody waits any more.

        Returns:
            The logits and the routing weights used, of `V + 1` rows, the first of which is unchanged; None if stopped.
        """
        variants, blocks, experts = overrides.weights.shape
        changed = np.isfinite(overrides.weights).any(axis=2) | overrides.uniform
        first = np.where(changed.any(axis=1), changed.argmax(axis=1), blocks)
        own = np.full((1, blocks, experts), np.nan, np.float32)
        weights = np.concatenate([own, overrides.weights.astype(np.float32)])
        uniform = np.concatenate([np.zeros((1, blocks), bool), overrides.uniform])
        used = np.zeros((variants + 1, blocks, experts), np.float32)
        members = np.zeros(1, np.int64)
        with reporting_memory():
            features = self._prefix(row[None].astype(self._row_type, casting="safe", copy=False))
            for number, step in enumerate(self._steps):
                joining = 1 + np.flatnonzero(first == number)
                members = np.concatenate([members, joining])
                features = np.concatenate([features, np.repeat(features[:1], len(joining), axis=0)])
                parts, count = [], self._experts[number]
                for start in range(0, len(members), MICRO_BATCH):
                    if stopped():
                        return None
                    chosen = members[start : start + MICRO_BATCH]
                    result, routing = step(
                        features[start : start + MICRO_BATCH], weights[chosen, number, :count], uniform[chosen, number]
                    )
                    parts.append(result)
                    used[chosen, number, :count] = routing
                used[1 + np.flatnonzero(first > number), number] = used[0, number]  # not yet different
                features = np.concatenate(parts)
        logits = np.empty((variants + 1, features.shape[1]), np.float32)
        logits[:] = features[0]  # variants that change nothing never joined
        logits[members] = features
        return ModelOutput(logits, used)

    def close(self) -> None:
        """Release the graphs and their weights."""
        for part in (self._prefix, *self._steps):
            part.close()


class _Part:
    """A part of the network as a graph of its own: in one for all, each would be optimised as often as there are."""

    def __init__(self, build: Callable[[], tuple[Any, list[Any]]]) -> None:
        """Let `build` say what to fetch and what to feed."""
        with tf.Graph().as_default() as graph:
            fetch, feed = build()
        self._session = open_session(graph)
        self._compute = self._session.make_callable(fetch, feed_list=feed)

    def __call__(self, *values: Any) -> Any:
        return self._compute(*values)

    def close(self) -> None:
        self._session.close()
        del self._session, self._compute  # whoever still holds this part must not hold the weights


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a block begins, and its routing: symbolic tensors of the network."""

    features: Any
    routing: Any


def _cuts(network: keras.Model) -> list[_Cut]:
    routing: dict[str, Any] = network.output.get("routing", {}) if isinstance(network.output, dict) else {}
    if not routing:
        raise BundleError("A static network has no routing that could be changed.")
    try:
        return [_Cut(network.get_layer(f"{name}_routing_pool").input, tensor) for name, tensor in routing.items()]
    except ValueError as error:
        raise BundleError("The routing of this network can't be changed: its blocks are unknown.") from error


def _lowered(inputs: Any, outputs: Any) -> Any:
    """The part of the network between symbolic tensors, lowered. Weights can be read only outside of graphs."""
    return lower(keras.Model(inputs, outputs), CPU)


def _step(cut: _Cut, end: Any) -> Callable[[], tuple[Any, list[Any]]]:
    """A block's part of the network, up to the symbolic tensor `end`."""
    route, convolve = _lowered(cut.features, cut.routing), _lowered([cut.features, cut.routing], end)

    def infer() -> tuple[Any, list[Any]]:
        features = tf.compat.v1.placeholder(tf.float32, (None, *cut.features.shape[1:]))
        weights = tf.compat.v1.placeholder(tf.float32, (None, cut.routing.shape[-1]))
        uniform = tf.compat.v1.placeholder(tf.bool, (None,))
        own = route(features)
        mean = tf.broadcast_to(tf.reduce_mean(own, axis=1, keepdims=True), tf.shape(own))
        used = tf.where(uniform[:, None], mean, tf.where(tf.math.is_nan(weights), own, weights))
        return [convolve([features, used]), used], [features, weights, uniform]

    return infer
