"""Finds a network's outputs: logits, the routing weights of every block, and the features that the classifier reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from condconv_serve.domain import BOXES, FEATURES, LOGITS, ROUTING, SCORES, OutputSpec, RoutingLayout, TaskName
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, CondConvDense
from condconv_serve.nn.model_graph import Call, ModelGraph, layers_within, replay
from condconv_serve.runtime.layer_kinds import is_condconv

Tensor = Any
_SUFFIX = "_routing"
"""A router called `<block>_routing` routes the block of that name."""
_NAMES = frozenset({"logits", "routing", "features"})
_CLASSIFIERS = (keras.layers.Dense, keras.layers.Conv2D, CondConvDense, CondConv2D)


def routing_layout(network: keras.Model) -> RoutingLayout:
    """The CondConv blocks and their experts, in the order of the inference graph's routing.

    Args:
        network: returns `{"logits": ..., "routing": {block: [B, experts]}}`.
    """
    return RoutingLayout.of({block: weights.shape[-1] for block, weights in network.output["routing"].items()})


def output_specs(network: keras.Model) -> tuple[OutputSpec, ...]:
    """What engines return for a network: logits, routing, and features if there are any; or a detector's outputs.

    Args:
        network: returns `{"logits": ..., "routing": {block: [B, experts]}}`, or a detector's `boxes` and `scores` in
            the place of `logits`.
    """
    if task_of(network) == "detection":
        return (
            *(OutputSpec(name, tuple(network.output[name].shape[1:])) for name in (BOXES, SCORES)),
            OutputSpec(ROUTING, routing_layout(network).shape),
        )
    features = find_features(network)
    return (
        OutputSpec(LOGITS, (network.output["logits"].shape[-1],)),
        OutputSpec(ROUTING, routing_layout(network).shape),
        *([] if features is None else [OutputSpec(FEATURES, (features.shape[-1],))]),
    )


def task_of(network: keras.Model) -> TaskName:
    """What a network is for, by the names of its outputs."""
    return "detection" if SCORES in network.output else "classification"


def classes_of(network: keras.Model) -> int:
    """How many classes a network tells apart."""
    classes: int = network.output[SCORES if task_of(network) == "detection" else LOGITS].shape[-1]
    return classes


def with_features(network: keras.Model) -> keras.Model:
    """The same network, which also returns its features if there are any: one more output, and no more layers.

    Args:
        network: returns `{"logits": ..., "routing": {block: [B, experts]}}`.
    """
    features = find_features(network)
    if features is None:
        return network
    return keras.Model(network.inputs[0], {**network.output, "features": features}, name=network.name)


def find_features(network: keras.Model) -> Tensor | None:
    """The vector of which the last layer makes the logits, symbolic: `[B, features]` or `[B, 1, 1, features]`.

    That layer is the last dense layer or convolution before the logits, with experts or without; what follows it
    changes numbers one by one.

    Args:
        network: returns `logits`, and perhaps `features` that it names itself; or is a detector.

    Returns:
        None if several layers add up to the logits, or these were pooled after the last layer, or there are none.

    Raises:
        ConfigurationError: the network is not functional.
    """
    graph = ModelGraph(network)
    if "features" in network.output:
        return network.output["features"]
    if LOGITS not in network.output:
        return None
    call = graph.producer(network.output["logits"])
    while call is not None and not isinstance(call.operation, _CLASSIFIERS):
        call = graph.producer(call.inputs[0]) if _goes_one_by_one(call) else None
    if call is None or not all(_is_vector(tensor) for tensor in (call.inputs[0], call.outputs[0])):
        return None
    return call.inputs[0]


def with_routing(network: keras.Model) -> keras.Model:
    """Wrap a classifier so that it returns logits and routing weights, sharing its layers.

    Every tensor that CondConv layers read as routing weights is a block, named after the layer that computes it. Models
    inside the model that hold CondConv layers or compute the logits are dissolved. A softmax at the end is left out,
    since logits are wanted.

    Args:
        network: functional or sequential; takes `[B, H, W, 3]` and returns class scores `[B, classes]`, or a dict of
            `logits` and, if it names them itself, `routing` and `features` `[B, features]`.

    Returns:
        A functional model that returns `{"logits": [B, classes], "routing": {block: [B, experts]}}`, and `features` if
        it was given them.

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
    if _models_to_dissolve(network):
        network = _dissolved(network)
    output = network.output
    given = output if isinstance(output, Mapping) and "logits" in output and set(output) <= _NAMES else {}
    if not given and len(network.outputs) != 1:
        raise ConfigurationError(
            "A network must return its logits alone, or a dict of `logits` and, if you name them yourself, `routing` "
            f"and `features`, not {len(network.outputs)} outputs."
        )
    logits = given.get("logits", network.outputs[0])
    graph = ModelGraph(network)
    routing = given["routing"] if "routing" in given else _find_routing(graph)
    _check(logits, routing)
    outputs = {"logits": _without_softmax(graph, logits), "routing": dict(routing)}
    if "features" in given:
        _check_features(given["features"])
        outputs["features"] = given["features"]
    return keras.Model(network.inputs[0], outputs, name=network.name)


def _functional(network: keras.Model) -> keras.Model:
    if isinstance(network, keras.Sequential) and network.built and network.inputs:
        # Not its inner functional model, whose name would be the same.
        network = keras.Model(network.inputs, network.outputs, name=network.name)
    ModelGraph(network)
    return network


def _models_to_dissolve(network: keras.Model) -> set[int]:
    """Ids of the models directly inside that hold CondConv layers, and of one that computes the logits."""
    output = network.output
    logits = output["logits"] if isinstance(output, Mapping) and "logits" in output else network.outputs[0]
    last = ModelGraph(network).producer(logits)
    return {
        id(model)
        for model in network.layers
        if isinstance(model, keras.Model)
        and (
            any(is_condconv(layer) for layer in layers_within(model)) or (last is not None and last.operation is model)
        )
    }


def _dissolved(network: keras.Model) -> keras.Model:
    """The same layers, called one by one instead of as models inside the model."""
    (given,) = network.inputs
    inputs = keras.Input(given.shape[1:], dtype=given.dtype, name=given.name)
    try:
        return keras.Model(inputs, _replay(network, inputs), name=network.name)
    except ValueError as error:
        raise ConfigurationError(
            f"{network.name!r} holds models with CondConv layers or its last layer, which are dissolved into it, but "
            f"then: {error}"
        ) from error


def _replay(network: keras.Model, inputs: Tensor) -> Any:
    to_dissolve = _models_to_dissolve(network)

    def resolve(operation: Any) -> Any:
        if id(operation) not in to_dissolve:
            return operation
        inner = _functional(operation)
        return lambda x, **_: _replay(inner, x)

    return replay(network, inputs, replace=resolve)


def _find_routing(graph: ModelGraph) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for routing, readers in _routing_read(graph).values():
        producer = graph.producer(routing)
        if producer is None:
            raise ConfigurationError(f"{readers[0].name}: its routing weights are an input, so nothing computes them.")
        name = producer.operation.name.removesuffix(_SUFFIX) or producer.operation.name
        if name in found:  # one router called twice
            name = readers[0].name
        found[name] = routing
    return found


def _routing_read(graph: ModelGraph) -> dict[int, tuple[Tensor, list[Any]]]:
    """The routing weights that CondConv layers read, with these layers, by id, in the order of first use."""
    found: dict[int, tuple[Tensor, list[Any]]] = {}
    for call in graph.calls:
        if is_condconv(call.operation):
            routing = call.inputs[1]
            found.setdefault(id(routing), (routing, []))[1].append(call.operation)
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


def _check_features(features: Any) -> None:
    if not isinstance(features, keras.KerasTensor) or len(features.shape) != 2 or not _is_vector(features):
        raise ConfigurationError("`features` must be [batch, features].")


def _is_vector(tensor: Tensor) -> bool:
    """Whether a tensor has one known axis, and all others but the batch are 1."""
    *others, numbers = tensor.shape
    return numbers is not None and len(others) > 0 and all(size == 1 for size in others[1:])


def _goes_one_by_one(call: Call) -> bool:
    """Whether a call keeps a vector's length, as norms, scales, and layers do that reshape it."""
    if len(call.inputs) != 1 or len(call.outputs) != 1 or isinstance(call.operation, keras.Model):
        return False
    before, after = call.inputs[0], call.outputs[0]
    return _is_vector(before) and _is_vector(after) and before.shape[-1] == after.shape[-1]


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
