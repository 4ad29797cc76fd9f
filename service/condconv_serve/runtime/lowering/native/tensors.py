"""Which symbolic tensors of a network are the same numbers, and who reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

import keras
from keras import layers

from condconv_serve.nn.model_graph import Call, ModelGraph

Tensor = Any


def _always(layer: Any) -> bool:
    return True


def _keeps_order(layer: Any) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_last"


# Layers that change no number when a network answers: at most the shape.
_ALIASES: Final[Mapping[type, Callable[[Any], bool]]] = {
    layers.Identity: _always,
    layers.Dropout: _always,
    layers.SpatialDropout1D: _always,
    layers.SpatialDropout2D: _always,
    layers.GaussianDropout: _always,
    layers.GaussianNoise: _always,
    layers.AlphaDropout: _always,
    layers.ActivityRegularization: _always,
    layers.Activation: lambda layer: layer.activation is keras.activations.linear,
    layers.Flatten: _keeps_order,
    layers.Reshape: _always,
}


class Tensors:
    """The tensors of a network, each found by its root: the tensor whose numbers it has, perhaps in another shape.

    Attributes:
        aliases: ids of the calls that compute nothing.
    """

    def __init__(self, graph: ModelGraph) -> None:
        """Look through the calls of a network."""
        self._graph = graph
        self.aliases: set[int] = set()
        self._roots: dict[int, Tensor] = {}
        self._readers: dict[int, list[Call]] = defaultdict(list)
        pools: dict[int, Tensor] = {}
        for call in graph.calls:
            source = self.root(call.inputs[0]) if call.inputs else None
            if _is_alias(call):
                self._alias(call, source)
            elif type(call.operation) is layers.GlobalAveragePooling2D and _keeps_order(call.operation):
                # Routing and squeeze-and-excitation may ask for the same mean.
                if id(source) in pools:
                    self._alias(call, pools[id(source)])
                else:
                    pools[id(source)] = call.outputs[0]
            if id(call) not in self.aliases:
                for tensor in call.inputs:
                    self._readers[id(self.root(tensor))].append(call)
        self._outputs = {id(self.root(tensor)) for tensor in keras.tree.flatten(graph.output)}

    def root(self, tensor: Tensor) -> Tensor:
        """The tensor whose numbers a tensor has: itself, or one before it."""
        return self._roots.get(id(tensor), tensor)

    def producer(self, tensor: Tensor) -> Call | None:
        """The call that computes a tensor's numbers; None if they are an input."""
        return self._graph.producer(self.root(tensor))

    def readers(self, root: Tensor) -> list[Call]:
        """The calls that read the numbers of a root; one that reads them twice is there twice."""
        return self._readers.get(id(root), [])

    def is_output(self, root: Tensor) -> bool:
        """Whether the network returns these numbers."""
        return id(root) in self._outputs

    def sole_reader(self, root: Tensor) -> Call | None:
        """The only call that reads a root's numbers; None if there are more or none, or the network returns them."""
        readers = self.readers(root)
        return readers[0] if len(readers) == 1 and not self.is_output(root) else None

    def _alias(self, call: Call, root: Tensor) -> None:
        self.aliases.add(id(call))
        self._roots[id(call.outputs[0])] = root


def row_shape(tensor: Tensor) -> tuple[int, ...] | None:
    """The shape without the batch; None if it is open."""
    shape = tuple(tensor.shape[1:])
    return None if None in shape else shape


def map_size(tensor: Tensor) -> tuple[int, int, int] | None:
    """Height, width and channels of a map, or of a vector as a map of one pixel; None if a tensor is neither."""
    shape = row_shape(tensor)
    if shape is None or len(shape) not in (1, 3):
        return None
    return (1, 1, shape[0]) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _is_alias(call: Call) -> bool:
    test = _ALIASES.get(type(call.operation))
    if test is None or len(call.inputs) != 1 or not test(call.operation):
        return False
    before, after = call.inputs[0], call.outputs[0]
    if before.shape == after.shape:
        return True
    # Other shapes may be read where the numbers lie only if the reader can tell: a vector of all numbers of a map.
    return map_size(before) is not None and (map_size(before) == map_size(after) or len(after.shape) == 2)
