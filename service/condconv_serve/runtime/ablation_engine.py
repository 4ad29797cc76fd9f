"""Computes one image with many routings: what would the network answer without an expert?

The network is cut where a block's routing weights are first read. Everything before the first cut is computed once. A
variant starts at the first block that it changes, with a copy of the image's features. From there all variants go
through each block together, as rows of small batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from condconv_serve.domain import BOXES, LOGITS, ROUTING, SCORES, Preprocessing, RoutingOverrides, Row, Tensors
from condconv_serve.errors import BundleError
from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.lowering import CPU, Lowered, Lowering, NativeLowering, lower
from condconv_serve.runtime.lowering.pixels import normalised
from condconv_serve.runtime.tensorflow_engine import open_session, reporting_memory

MICRO_BATCH = 4
"""Rows computed at once: as for ordinary batches, more would leave the cache."""


class AblationEngine:
    """Computes variants of one image's routing, in float32 on TensorFlow, on the calling thread. One call at a time."""

    def __init__(
        self, network: keras.Model, preprocessing: Preprocessing, *, lowering: Lowering | NativeLowering = CPU
    ) -> None:
        """Freeze the network in parts; they need about as much memory as another engine would.

        Args:
            network: functional, with its weights; returns `{"logits": ..., "routing": {block: [B, experts]}}`, or a
                detector's `boxes` and `scores` in the place of `logits`.
            preprocessing: its mean and standard deviation go into the graph.
            lowering: which operations to use.

        Raises:
            BundleError: the network is static, or two of its blocks have the same routing weights.
        """
        routing = _routing(network)
        self._row_type = preprocessing.row_type
        self._experts = [weights.shape[-1] for weights in routing]
        self._outputs = {name: id(tensor) for name, tensor in _outputs(network).items()}
        graph = ModelGraph(network)
        cuts = _cuts(graph, routing, _outputs(network).values())
        self._prefix = _prefix(graph, cuts[0], preprocessing, lowering)
        self._steps = [_step(graph, cut, routing[cut.block], lowering) for cut in cuts[1:]]
        # The first calls are slow, so they are made here.
        shape = (MICRO_BATCH, len(routing), max(self._experts))
        size = preprocessing.image_size
        self(
            np.zeros((size, size, 3), np.uint8),
            RoutingOverrides(np.zeros(shape, np.float32), np.zeros(shape[:2], np.bool_)),
        )

    def __call__(
        self, row: Row, overrides: RoutingOverrides, *, stopped: Callable[[], bool] = lambda: False
    ) -> Tensors | None:
        """Compute one row with all variants.

        Args:
            row: `[image_size, image_size, 3]`.
            overrides: the routing of `V` variants. Blocks may have fewer experts than others; values beyond theirs are
                ignored.
            stopped: called now and then. If it returns true, the work ends, since nobody waits for the answer any more.

        Returns:
            The network's outputs, `logits` or `boxes` and `scores`, and the `routing` weights used, of `V + 1` rows:
            the image as it is, then the variants. None if stopped.
        """
        variants, blocks, experts = overrides.weights.shape
        order = [step.block for step in self._steps]
        changed = (np.isfinite(overrides.weights).any(axis=2) | overrides.uniform)[:, order]
        first = np.where(changed.any(axis=1), changed.argmax(axis=1), blocks)
        own = np.full((1, blocks, experts), np.nan, np.float32)
        weights = np.concatenate([own, overrides.weights.astype(np.float32)])
        uniform = np.concatenate([np.zeros((1, blocks), bool), overrides.uniform])
        used = np.zeros((variants + 1, blocks, experts), np.float32)
        members = np.zeros(1, np.int64)
        with reporting_memory():
            rows = row[None].astype(self._row_type, casting="safe", copy=False)
            features = self._prefix.keep({}, self._prefix.part(rows))
            for place, step in enumerate(self._steps):
                block, count = step.block, self._experts[step.block]
                joining = 1 + np.flatnonzero(first == place)
                members = np.concatenate([members, joining])
                features = {
                    name: np.concatenate([values, np.repeat(values[:1], len(joining), axis=0)])
                    for name, values in features.items()
                }
                parts = []
                for start in range(0, len(members), MICRO_BATCH):
                    if stopped():
                        return None
                    chosen = members[start : start + MICRO_BATCH]
                    given = [features[name][start : start + MICRO_BATCH] for name in step.inputs]
                    results = step.part(weights[chosen, block, :count], uniform[chosen, block], *given)
                    parts.append(results)
                    used[chosen, block, :count] = results[0]
                used[1 + np.flatnonzero(first > place), block] = used[0, block]  # not yet different
                features = step.keep(features, [np.concatenate(one) for one in zip(*parts, strict=True)])
        found = {name: _of_all(features[tensor], members, variants + 1) for name, tensor in self._outputs.items()}
        return {**found, ROUTING: used}

    def close(self) -> None:
        """Release the graphs and their weights."""
        for stage in (self._prefix, *self._steps):
            stage.part.close()


class _Part:
    """A part of the network as a graph of its own: in a graph for all parts, each call would optimise all of them."""

    def __init__(
        self, compute: Callable[..., list[Any]], specs: Sequence[tf.TensorSpec], *, lowered: Lowered | None
    ) -> None:
        """Trace `compute`, a function of tensors that uses `lowered`; variables of this are frozen."""
        stateless = lowered is None or lowered.stateless
        self._resources = () if lowered is None else lowered.resources
        if not stateless:
            function = tf.function(compute, autograph=False).get_concrete_function(*specs)
            frozen = convert_variables_to_constants_v2(function)
        with tf.Graph().as_default() as graph:
            if stateless:  # without the copies of all weights that tf.function would leave behind
                feed = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
                fetch = compute(*feed)
            else:
                names = [tensor.name for tensor in (*frozen.inputs, *frozen.outputs)]
                found = tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), return_elements=names, name="")
                feed, fetch = found[: len(specs)], found[len(specs) :]
        self._session = open_session(graph)
        self._compute = self._session.make_callable(fetch, feed_list=feed)

    def __call__(self, *values: Any) -> list[NDArray[np.generic]]:
        result: list[NDArray[np.generic]] = self._compute(*values)
        return result

    def close(self) -> None:
        self._session.close()
        del self._session, self._compute  # whoever still holds this part must not hold the weights
        for resource in self._resources:
            resource.close()


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part of the network, by its symbolic tensors.

    Attributes:
        block: the number of the block whose routing weights are first read here; -1 for what comes before all blocks.
        inputs: tensors that are read here, but computed before.
        outputs: tensors that are computed here and read later.
        kept: ids of all tensors that are read later, wherever they are computed.
    """

    block: int
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    kept: frozenset[int]


class _Stage:
    """Computes a cut; knows tensors by their ids alone, since they would keep the network's weights in memory."""

    def __init__(self, cut: _Cut, part: _Part) -> None:
        self.block, self.kept, self.part = cut.block, cut.kept, part
        self.inputs, self.outputs = ([id(tensor) for tensor in tensors] for tensors in (cut.inputs, cut.outputs))

    def keep(
        self, before: dict[int, NDArray[np.generic]], results: Sequence[NDArray[np.generic]]
    ) -> dict[int, NDArray[np.generic]]:
        """The values that are read later."""
        values = before | dict(zip(self.outputs, results, strict=True))
        return {name: value for name, value in values.items() if name in self.kept}


def _of_all(values: NDArray[np.generic], members: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
    """An output of all rows. Variants that change nothing never joined, so theirs is that of the unchanged image."""
    found = np.empty((rows, *values.shape[1:]), np.float32)
    found[:] = values[0]
    found[members] = values
    return found


def _outputs(network: keras.Model) -> dict[str, Any]:
    """The tensors by which answers are compared, by name."""
    return {name: network.output[name] for name in (LOGITS, BOXES, SCORES) if name in network.output}


def _routing(network: keras.Model) -> list[Any]:
    routing = list(network.output.get("routing", {}).values()) if isinstance(network.output, dict) else []
    if not routing:
        raise BundleError("A static network has no routing that could be changed.")
    if len({id(weights) for weights in routing}) < len(routing):
        raise BundleError("The routing of this network can't be changed: two of its blocks have the same one.")
    return routing


def _cuts(graph: ModelGraph, routing: Sequence[Any], answers: Iterable[Any]) -> list[_Cut]:
    """What comes before all blocks, and what each of them adds, in the order in which their routing is computed."""
    computed = {id(tensor): place for place, tensor in enumerate(t for call in graph.calls for t in call.outputs)}
    blocks = sorted(range(len(routing)), key=lambda block: computed[id(routing[block])])
    # A call that reads a block's routing belongs to that block; any other call, to the last block that it depends on.
    after = {id(routing[block]): place for place, block in enumerate(blocks, 1)}
    stage = {id(graph.inputs[0]): -1}
    read: dict[int, dict[int, Any]] = defaultdict(dict)
    for call in graph.calls:
        at = max(0, *(after.get(id(tensor), stage[id(tensor)]) for tensor in call.inputs))
        stage |= {id(tensor): at for tensor in call.outputs}
        read[at] |= {id(tensor): tensor for tensor in call.inputs}
    for tensor in routing:
        read[after[id(tensor)]][id(tensor)] = tensor
    read[len(blocks) + 1] = {id(tensor): tensor for tensor in answers}
    cuts = []
    for place, block in enumerate([-1, *blocks]):
        later = {name: tensor for at in read if at > place for name, tensor in read[at].items()}
        inputs = tuple(tensor for name, tensor in read[place].items() if stage[name] < place)
        outputs = tuple(tensor for name, tensor in later.items() if stage[name] == place)
        cuts.append(_Cut(block, inputs, outputs, frozenset(later)))
    return cuts


def _prefix(graph: ModelGraph, cut: _Cut, preprocessing: Preprocessing, lowering: Lowering | NativeLowering) -> _Stage:
    """What comes before all blocks, of rows."""
    pixels = graph.inputs[0]
    lowered = _lowered(graph.between([pixels], cut.outputs), lowering, preprocessing)
    cut = _Cut(cut.block, (pixels,), (pixels, *cut.outputs), cut.kept)

    def compute(rows: Any) -> list[Any]:
        return [normalised(rows, preprocessing), *_values(lowered, cut.outputs[1:], [rows])]

    size = preprocessing.image_size
    return _Stage(cut, _Part(compute, [tf.TensorSpec((None, size, size, 3), preprocessing.row_type)], lowered=lowered))


def _step(graph: ModelGraph, cut: _Cut, routing: Any, lowering: Lowering | NativeLowering) -> _Stage:
    """What a block adds: from weights (NaN: the model's own), uniform and features to weights used and features.

    Later blocks may read the weights used, too.
    """
    lowered = _lowered(graph.between(cut.inputs, cut.outputs), lowering)
    place = next(place for place, tensor in enumerate(cut.inputs) if tensor is routing)

    def compute(weights: Any, uniform: Any, *features: Any) -> list[Any]:
        own = features[place]
        mean = tf.broadcast_to(tf.reduce_mean(own, axis=1, keepdims=True), tf.shape(own))
        used = tf.where(tf.math.is_nan(weights), tf.where(uniform[:, None], mean, own), weights)
        return [used, *_values(lowered, cut.outputs, [*features[:place], used, *features[place + 1 :]])]

    used_first = _Cut(cut.block, cut.inputs, (routing, *cut.outputs), cut.kept)
    specs = [
        tf.TensorSpec((None, routing.shape[-1]), tf.float32),
        tf.TensorSpec((None,), tf.bool),
        *(tf.TensorSpec((None, *tensor.shape[1:]), _type(tensor)) for tensor in cut.inputs),
    ]
    return _Stage(used_first, _Part(compute, specs, lowered=lowered))


def _lowered(
    part: ModelGraph, lowering: Lowering | NativeLowering, preprocessing: Preprocessing | None = None
) -> Lowered | None:
    """A part of the network as a function; None if it has no outputs.

    To be called outside of any graph, where weights can't be read.
    """
    return lower(part, lowering, preprocessing=preprocessing) if part.output else None


def _values(lowered: Lowered | None, outputs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    results = [] if lowered is None else keras.tree.flatten(lowered(*inputs))
    return [tf.cast(result, _type(tensor)) for result, tensor in zip(results, outputs, strict=True)]


def _type(tensor: Any) -> Any:
    """The type that a tensor's values have between the parts."""
    return tf.float32 if "float" in tensor.dtype else tf.as_dtype(tensor.dtype)
