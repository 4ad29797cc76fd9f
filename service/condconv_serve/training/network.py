"""A bundle's network made ready for training: a head for other classes, and which of its layers learn."""

from __future__ import annotations

import math
from typing import Any, Literal

import keras

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.layer_kinds import is_condconv
from condconv_serve.runtime.model_graph import ModelGraph, layers_within

Part = Literal["all", "experts", "routing", "head"]
"""What is trained: everything but the batch norms; experts, routers and head; routers and head; or only the head."""


def with_classes(network: keras.Model, classes: int) -> keras.Model:
    """Give a network a fresh last layer for another number of classes; all others are shared.

    Args:
        network: returns `logits` and `routing`.
        classes: of the new last layer.

    Raises:
        ConfigurationError: the network doesn't end in a Dense layer.
    """
    output = network.output
    layer, before = _head(network)
    # With zeros no class is preferred at first, and the first gradients reach only this layer.
    fresh = type(layer).from_config({**layer.get_config(), "units": classes, "kernel_initializer": "zeros"})
    return keras.Model(network.inputs[0], {**output, "logits": fresh(before)}, name=network.name)


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


def last_layers(network: keras.Model) -> tuple[list[Any], Any]:
    """The last layer and the dropout before it, in the order in which they compute, and the tensor that they read.

    Raises:
        ConfigurationError: the network doesn't end in a Dense layer.
    """
    layer, tensor = _head(network)
    graph, layers = ModelGraph(network), [layer]
    while (call := graph.producer(tensor)) is not None and type(call.operation) is keras.layers.Dropout:
        layers.insert(0, call.operation)
        tensor = call.inputs[0]
    return layers, tensor


def _head(network: keras.Model) -> tuple[Any, Any]:
    """The last layer, and the tensor that it reads."""
    call = ModelGraph(network).producer(network.output["logits"])
    if call is None or type(call.operation) is not keras.layers.Dense:
        ends = "its input" if call is None else f"a {type(call.operation).__name__}"
        raise ConfigurationError(f"The network ends in {ends}, but only a Dense layer can be given other classes.")
    return call.operation, call.inputs[0]
