"""Finds a network's outputs: logits, and the routing weights of every block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from condconv_serve.domain import RoutingLayout
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.layer_kinds import is_condconv
from condconv_serve.runtime.model_graph import ModelGraph, layers_within, replay

Tensor = Any
_SUFFIX = "_routing"
"""A router called `<block>_routing` routes the block of that name."""


def routing_layout(network: keras.Model) -> RoutingLayout:
    """The CondConv blocks and their experts, in the order of the inference graph's routing.

    Args:
        network: returns `{"logits": ..., "routing": {block: [B, experts]}}`.
    """
    return RoutingLayout.of({block: weights.shape[-1] for block, weights in network.output["routing"].items()})


def with_routing(network: keras.Model) -> keras.Model:
    """Wrap a classifier so that it returns logits and routing weights, sharing its layers.

    Every tensor that CondConv layers read as routing weights is a block, named after the layer that computes it. Models
    inside the model that hold CondConv layers are dissolved. A softmax at the end is left out, since logits are wanted.

    Args:
        network: functional or sequential; takes `[B, H, W, 3]` and returns class scores `[B, classes]`, or a dict of
            `logits` and, if it names the blocks itself, `routing`.

    Returns:
        A functional model that returns `{"logits": [B, classes], "routing": {block: [B, experts]}}`.

    Raises:
        ConfigurationError: it isn't such a classifier; says in what.
    """
    network = _functional(network)
    if len(network.inputs) != 1 or len(network.inputs[0].shape) != 4 or network.inputs[0].shape[-1] != 3:
        shapes = ", ".join(str(tensor.shape) for tensor in network.inputs)
        raise ConfigurationError(
            f"A network is served with RGB rows, so it needs one input [batch, height, width, 3], not {shapes}; "
            "repeat or drop channels inside the network."
        )
    if any(_holds_condconv(layer) for layer in network.layers if isinstance(layer, keras.Model)):
        network = _dissolved(network)
    output = network.output
    given = isinstance(output, Mapping) and "logits" in output and set(output) <= {"logits", "routing"}
    if not given and len(network.outputs) != 1:
        raise ConfigurationError(
            "A network must return its logits alone, or a dict of `logits` and `routing`, not "
            f"{len(network.outputs)} outputs."
        )
    logits = output["logits"] if given else network.outputs[0]
    routing = output.get("routing") if given else None
    graph = ModelGraph(network)
    if routing is None:
        routing = _find_routing(graph)
    _check(logits, routing)
    logits = _without_softmax(graph, logits)
    return keras.Model(network.inputs[0], {"logits": logits, "routing": dict(routing)}, name=network.name)


def _functional(network: keras.Model) -> keras.Model:
    if isinstance(network, keras.Sequential) and network.built and network.inputs:
        # Not its inner functional model, whose name would be the same.
        network = keras.Model(network.inputs, network.outputs, name=network.name)
    ModelGraph(network)
    return network


def _holds_condconv(model: keras.Model) -> bool:
    return any(is_condconv(layer) for layer in layers_within(model))


def _dissolved(network: keras.Model) -> keras.Model:
    """The same layers, called one by one instead of as models inside the model."""
    (given,) = network.inputs
    inputs = keras.Input(given.shape[1:], dtype=given.dtype, name=given.name)
    try:
        return keras.Model(inputs, _replay(network, inputs), name=network.name)
    except ValueError as error:
        raise ConfigurationError(
            f"{network.name!r} holds models with CondConv layers, which are dissolved into it, but then: {error}"
        ) from error


def _replay(network: keras.Model, inputs: Tensor) -> Any:
    def resolve(operation: Any) -> Any:
        if not isinstance(operation, keras.Model) or not _holds_condconv(operation):
            return operation
        inner = _functional(operation)
        return lambda x, **_: _replay(inner, x)

    return replay(network, inputs, replace=resolve)


def _find_routing(graph: ModelGraph) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for routing, readers in graph.condconv_routing().values():
        producer = graph.producer(routing)
        if producer is None:
            raise ConfigurationError(f"{readers[0].name}: its routing weights are an input, so nothing computes them.")
        name = producer.operation.name.removesuffix(_SUFFIX) or producer.operation.name
        if name in found:  # one router called twice
            name = readers[0].name
        found[name] = routing
    return found


def _check(logits: Tensor, routing: Any) -> None:
    if len(logits.shape) != 2 or logits.shape[-1] is None:
        raise ConfigurationError(f"Logits must be [batch, classes], not {tuple(logits.shape)}.")
    if logits.shape[-1] < 2:
        raise ConfigurationError("A classifier needs a logit per class, and at least two classes; this one has one.")
    if not isinstance(routing, Mapping):
        raise ConfigurationError("`routing` must be a dict of routing weights by the name of their block.")
    for block, weights in routing.items():
        if not isinstance(block, str) or not block or len(weights.shape) != 2 or weights.shape[-1] is None:
            raise ConfigurationError(f"The routing weights of {block!r} must be [batch, experts], not {weights.shape}.")


def _without_softmax(graph: ModelGraph, logits: Tensor) -> Tensor:
    """The tensor before a final softmax; any other activation but none is refused."""
    producer = graph.producer(logits)
    if producer is None:
        raise ConfigurationError("The logits are an input, so nothing computes them.")
    operation, before = producer.operation, producer.inputs
    if isinstance(operation, keras.layers.Softmax):
        return before[0]
    activation = getattr(operation, "activation", keras.activations.linear)
    if activation is keras.activations.linear:
        return logits
    if activation is not keras.activations.softmax:
        raise ConfigurationError(
            f"The last layer {operation.name!r} has the activation {getattr(activation, '__name__', activation)!r}; "
            "a classifier of exclusive classes ends in logits or in a softmax."
        )
    if isinstance(operation, keras.layers.Activation):
        return before[0]
    linear = type(operation).from_config({**operation.get_config(), "activation": None})
    inner = linear(before[0])
    linear.set_weights(operation.get_weights())
    return inner
