"""Who reads what in a functional Keras model."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import keras

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D


class ModelGraph:
    """The calls of a functional model's layers.

    Only the nodes know every call and every reader: `layer.input` and `layer.output` tell of the first call alone,
    which may even be in another model.
    """

    def __init__(self, model: keras.Model) -> None:
        """Look through a functional model.

        Raises:
            ConfigurationError: it is a class of its own, whose layers can't be seen from outside.
        """
        if not hasattr(model, "_nodes_by_depth"):
            raise ConfigurationError(
                f"{model.name!r} is a {type(model).__name__}, a class of its own or a network without an Input, and "
                "only functional models can be served: write it as keras.Model(inputs, outputs), for instance "
                "inputs = keras.Input((224, 224, 3)); keras.Model(inputs, network.call(inputs))."
            )
        depths = sorted(model._nodes_by_depth.items())  # from the outputs to the inputs
        self.nodes = [node for _, depth in depths for node in depth if not node.is_input]
        self._calls = Counter(id(node.operation) for node in self.nodes)
        self._readers: dict[int, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for tensor in node.input_tensors:
                self._readers[id(tensor)].append(node.operation)
        self._outputs = {id(tensor) for tensor in keras.tree.flatten(model.output)}

    def called_once(self, layer: Any) -> bool:
        """Whether the model calls a layer exactly once."""
        return self._calls[id(layer)] == 1

    def sole_reader(self, node: Any) -> Any | None:
        """The only layer, operation or model that reads a call's output; None if there are more, or it is an output."""
        output = id(node.outputs[0])
        found = self._readers[output]
        return found[0] if len(found) == 1 and output not in self._outputs else None

    def condconv_routing(self) -> dict[int, tuple[Any, list[Any]]]:
        """The routing weights that CondConv layers read, with their readers, by id, in the order of first use."""
        found: dict[int, tuple[Any, list[Any]]] = {}
        for node in reversed(self.nodes):
            if isinstance(node.operation, CondConv2D | DepthwiseCondConv2D):
                routing = node.input_tensors[1]
                found.setdefault(id(routing), (routing, []))[1].append(node.operation)
        return found
