"""Who reads what in a functional Keras model."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import keras


class ModelGraph:
    """The calls of a functional model's layers.

    Only the nodes know every call and every reader: `layer.input` and `layer.output` tell of the first call alone,
    which may even be in another model.
    """

    def __init__(self, model: keras.Model) -> None:
        """Look through a functional model."""
        self.nodes = [node for depth in model._nodes_by_depth.values() for node in depth if not node.is_input]
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
