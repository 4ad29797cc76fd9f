"""A bundle's network made ready for training: a head for other classes, and which of its layers learn."""

from __future__ import annotations

import math
from typing import Any, Literal

import keras

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D

Part = Literal["all", "experts", "routing", "head"]
"""What learns: everything but the batch norms; experts, routers and head; routers and head; or the head alone."""


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
    # With zeros no class is preferred at first, and the first gradients reach nothing but this layer.
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
    routers = [weights._keras_history.operation for weights in network.output["routing"].values()]
    if not routers and part in ("routing", "experts"):
        raise ConfigurationError("This network has no CondConv blocks, so only `all` or `head` can be trained.")
    chosen = {id(head), *(id(router) for router in routers if part != "head")}
    for layer in network._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, keras.Model):
            continue
        experts = part == "experts" and isinstance(layer, CondConv2D | DepthwiseCondConv2D)
        learns = part == "all" or experts or id(layer) in chosen
        layer.trainable = learns and not isinstance(layer, keras.layers.BatchNormalization)
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def _head(network: keras.Model) -> tuple[Any, Any]:
    """The last layer, and the tensor that it reads."""
    history = network.output["logits"]._keras_history
    layer = history.operation
    if type(layer) is not keras.layers.Dense:
        raise ConfigurationError(
            f"The network ends in a {type(layer).__name__}, but only a Dense layer can be given other classes."
        )
    return layer, layer._inbound_nodes[history.node_index].input_tensors[0]
