"""Which call of a functional Keras model computes and reads which tensor.

Only Keras's private attributes say so. They are used in this file alone, so a new version of Keras can break only one
file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from condconv_serve.errors import ConfigurationError

Tensor = Any


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a layer, an operation, or a model inside the model, with its symbolic inputs and outputs.

    A layer that is called twice has two calls.
    """

    operation: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    _arguments: Any = field(repr=False)

    def by_keras(self, values: Mapping[int, Tensor]) -> list[Tensor]:
        """Have Keras compute the call as for inference.

        Args:
            values: a value for each input, by the input's id.

        Returns:
            A value for each output.
        """
        arguments, named = self._arguments.fill_in(values)
        if "training" in getattr(self.operation, "_call_context_args", ()):
            named = {**named, "training": False}
        return keras.tree.flatten(self.operation(*arguments, **named))


class ModelGraph:
    """The calls of a functional model's layers, and what links them.

    `layer.input` and `layer.output` would tell of a layer's first call alone, which may even be in another model.

    Attributes:
        calls: all of them, each after those whose outputs it reads.
        inputs: of the model, symbolic.
        output: of the model: a symbolic tensor, or a structure of them.
    """

    def __init__(self, model: keras.Model) -> None:
        """Look through a functional model.

        Raises:
            ConfigurationError: the model is a class of its own, whose layers can't be seen from outside.
        """
        if not hasattr(model, "_nodes_by_depth"):
            raise ConfigurationError(
                f"{model.name!r} is a {type(model).__name__}, a class of its own or a network without an Input, and "
                "only functional models can be served: write it as keras.Model(inputs, outputs), for instance "
                "inputs = keras.Input((224, 224, 3)); keras.Model(inputs, network.call(inputs))."
            )
        depths = sorted(model._nodes_by_depth.items())  # from the outputs to the inputs
        nodes = [node for _, depth in depths for node in depth if not node.is_input]
        calls = tuple(
            Call(node.operation, tuple(node.input_tensors), tuple(node.outputs), node.arguments)
            for node in reversed(nodes)
        )
        self._link(calls, model.inputs, model.output)

    def _link(self, calls: Sequence[Call], inputs: Sequence[Tensor], output: Any) -> None:
        self.calls, self.inputs, self.output = calls, inputs, output
        self._counts = Counter(id(call.operation) for call in self.calls)
        self._producers = {id(tensor): call for call in self.calls for tensor in call.outputs}
        self._readers: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in call.inputs:
                self._readers[id(tensor)].append(call)
        self._outputs = {id(tensor) for tensor in keras.tree.flatten(output)}

    def between(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> ModelGraph:
        """The part of the network that computes some of its tensors from others.

        `keras.Model` makes such parts, too, but loses a layer's call if another call of that layer computes an input.

        Args:
            inputs: of the part. No call computes one of them and also something that the part needs.
            outputs: all of which the inputs determine.
        """
        known, wanted = {id(tensor) for tensor in inputs}, {id(tensor) for tensor in outputs}
        calls: list[Call] = []
        for call in reversed(self.calls):
            if not (wanted - known).isdisjoint(id(tensor) for tensor in call.outputs):
                calls.append(call)
                wanted |= {id(tensor) for tensor in call.inputs}
        part = ModelGraph.__new__(ModelGraph)
        part._link(calls[::-1], inputs, list(outputs))
        return part

    def called_once(self, layer: Any) -> bool:
        """Whether the model calls a layer exactly once."""
        return self._counts[id(layer)] == 1

    def producer(self, tensor: Tensor) -> Call | None:
        """The call that computes a tensor of this model; None if the tensor is an input."""
        return self._producers.get(id(tensor))

    def sole_reader(self, call: Call) -> Call | None:
        """The only call that reads a call's output; None if there are more or none, or it is an output of the model."""
        output = id(call.outputs[0])
        found = self._readers.get(output, [])
        return found[0] if len(found) == 1 and output not in self._outputs else None

    def readers(self, tensor: Tensor) -> list[Call]:
        """The calls that read a tensor; one that reads it twice is there twice."""
        return self._readers.get(id(tensor), [])

    def is_output(self, tensor: Tensor) -> bool:
        """Whether a tensor is an output of the model."""
        return id(tensor) in self._outputs


def layers_within(model: keras.Model) -> list[Any]:
    """All layers of a model, also those of models and layers inside of it, without the model itself."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def replay(model: keras.Model, inputs: Tensor, *, replace: Callable[[Any], Callable[..., Any]]) -> Any:
    """Call the layers of a functional model once more, on other inputs.

    Args:
        model: whose layers are called.
        inputs: what its inputs are replaced by.
        replace: gives what is called in the place of each layer, operation or model.

    Returns:
        The new outputs, in the structure of the model's own.
    """
    return model._run_through_graph(inputs, operation_fn=replace)
