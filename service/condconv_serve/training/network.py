"""A bundle's network made ready for training: a head for other classes, and which of its layers learn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConvDense
from condconv_serve.nn.model_graph import ModelGraph, layers_within
from condconv_serve.runtime.layer_kinds import is_condconv

Part = Literal["all", "experts", "routing", "head"]
"""What is trained: everything but the batch norms; experts, routers and head; routers and head; or only the head."""

_DIFFERENCE = 0.1
"""Of the experts of a fresh head, by the root of the number of features: of logits, if features are about 1."""
_HEADS = (keras.layers.Dense, CondConvDense)


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """How a network ends.

    Attributes:
        dropouts: the layers before the last one that drop some features, in order.
        head: the last layer.
        features: what the dropouts read, symbolic.
        routing: what the head reads besides; None if it isn't mixed from experts.
    """

    dropouts: tuple[Any, ...]
    head: Any
    features: Any
    routing: Any | None


def with_classes(network: keras.Model, classes: int) -> keras.Model:
    """Give a network a fresh last layer for another number of classes; all others are shared.

    Args:
        network: returns `logits` and `routing`.
        classes: of the new last layer.

    Raises:
        ConfigurationError: the network doesn't end in a Dense or CondConvDense layer.
    """
    output = network.output
    layer, inputs = _head(network)
    # With zeros no class is preferred at first, and the first gradients reach only this layer.
    fresh = type(layer).from_config({**layer.get_config(), "units": classes, "kernel_initializer": "zeros"})
    renewed = keras.Model(network.inputs[0], {**output, "logits": fresh(*inputs)}, name=network.name)
    if isinstance(fresh, CondConvDense):
        _tell_apart(fresh)
    return renewed


def _tell_apart(head: CondConvDense) -> None:
    """Give equal experts small differences that sum to zero: with none they would learn the same, and so would routing.

    As long as their routing weights are equal, the answers stay what they were.
    """
    noise = np.random.default_rng(0).standard_normal(head.kernel.shape, np.float32)
    noise -= noise.mean(axis=0)
    head.kernel.assign(head.kernel + _DIFFERENCE / math.sqrt(head.kernel.shape[1]) * noise)


def set_trainable(network: keras.Model, part: Part) -> int:
    """Choose which layers learn.

    Batch norms never do: they keep their statistics, which a small data set would only spoil, and those of upcycled
    experts are folded away.

    Returns:
        The number of trained parameters.

    Raises:
        ConfigurationError: routing or experts are to learn, but the network has none.
    """
    head, _ = _head(network)
    graph = ModelGraph(network)
    computed = [graph.producer(weights) for weights in network.output["routing"].values()]
    routers = [call.operation for call in computed if call is not None]
    if not routers and part in ("routing", "experts"):
        raise ConfigurationError("This network has no CondConv blocks, so only `all` or `head` can be trained.")
    chosen = {id(head), *(id(router) for router in routers if part != "head")}
    for layer in layers_within(network):
        if isinstance(layer, keras.Model):
            continue
        experts = part == "experts" and is_condconv(layer)
        learns = part == "all" or experts or id(layer) in chosen
        layer.trainable = learns and not isinstance(layer, keras.layers.BatchNormalization)
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def ending_of(network: keras.Model) -> Ending:
    """How a network ends.

    Raises:
        ConfigurationError: the network doesn't end in a Dense or CondConvDense layer.
    """
    head, (tensor, *routing) = _head(network)
    graph = ModelGraph(network)
    dropouts: list[Any] = []
    while (call := graph.producer(tensor)) is not None and type(call.operation) is keras.layers.Dropout:
        dropouts.insert(0, call.operation)
        tensor = call.inputs[0]
    return Ending(tuple(dropouts), head, tensor, routing[0] if routing else None)


def _head(network: keras.Model) -> tuple[Any, tuple[Any, ...]]:
    """The last layer, and the tensors that it reads: features, and routing weights if it has experts."""
    call = ModelGraph(network).producer(network.output["logits"])
    if call is None or type(call.operation) not in _HEADS:
        ends = "its input" if call is None else f"a {type(call.operation).__name__}"
        raise ConfigurationError(
            f"The network ends in {ends}, but only a Dense or CondConvDense layer can be given other classes."
        )
    return call.operation, call.inputs
