"""How TensorFlow's own operations compute the calls of a functional network, as a lowering says."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf

from condconv_serve.domain import Preprocessing
from condconv_serve.nn.model_graph import Call, ModelGraph
from condconv_serve.runtime.fold import fold, foldable_norms
from condconv_serve.runtime.layer_kinds import Role, has_kernel, has_role
from condconv_serve.runtime.lowering.fusion import following_activations, scaled_convolutions
from condconv_serve.runtime.lowering.layers import activation_of, convolution, dense
from condconv_serve.runtime.lowering.lowered import Lowered
from condconv_serve.runtime.lowering.pixels import normalised
from condconv_serve.runtime.lowering.slots import Lowering, Tensor

Values = dict[int, Tensor]
"""Tensors by the ids of the symbolic tensors that they are values of."""


class TensorFlowCalls:
    """Computes the calls of a network one by one, norms folded, layers computed as a lowering says.

    Attributes:
        stateless: whether all that is left of the layers are constants.
    """

    def __init__(self, graph: ModelGraph, lowering: Lowering, *, but: Collection[Call] = ()) -> None:
        """Take over the weights of the known layers, as `lowering.hold` does; Keras computes the others.

        Args:
            graph: of the network.
            lowering: which operations to use.
            but: calls that something else computes. Norms and activations go with the layer that they follow.
        """
        others = {id(call) for call in but}
        calls = [call for call in graph.calls if id(call) not in others]
        names = {call.operation.name for call in calls}
        norms = {name: norm for name, norm in foldable_norms(graph).items() if name in names}
        scaled = scaled_convolutions(graph) if lowering.fold_scales else {}
        self._scaled = {product: conv for product, conv in scaled.items() if {product, conv} <= names}
        activations = {
            name: activation
            for name, activation in following_activations(graph, norms).items()
            if {name, activation.name} <= names
        }
        self._unchanged = {
            *self._scaled,
            *(norm.name for norm in norms.values()),
            *(activation.name for activation in activations.values()),
        }
        self._scales: dict[str, Tensor] = {}
        self._functions: dict[str, Callable[..., Tensor]] = {}
        self.stateless = all(call.operation.name in self._unchanged or _forgets(call.operation) for call in calls)
        for layer in {id(call.operation): call.operation for call in calls}.values():
            if layer.name in self._unchanged:
                continue
            if has_kernel(layer):
                activation = activation_of(activations.get(layer.name, layer))
                weights = fold(layer, norms.get(layer.name))
                is_dense = has_role(layer, Role.DENSE)
                function = (dense if is_dense else convolution)(layer, weights, activation, lowering)
                self._functions[layer.name] = _cast(function, tf.float32 if is_dense else lowering.dtype)
            elif has_role(layer, Role.ACTIVATION):
                self._functions[layer.name] = _cast(activation_of(layer), tf.float32)

    def compute(self, call: Call, values: Values) -> None:
        """Compute one call: read its inputs from `values`, and add its outputs."""
        name = call.operation.name
        if name in self._scaled:
            x, self._scales[self._scaled[name]] = sorted(call.inputs, key=lambda tensor: tensor.shape[1] == 1)
            outputs = [values[id(x)]]
        elif name in self._unchanged:
            outputs = [values[id(call.inputs[0])]]
        elif name in self._functions:
            inputs = [*call.inputs, *([self._scales[name]] if name in self._scales else [])]
            outputs = [self._functions[name](*(values[id(tensor)] for tensor in inputs))]
        else:
            outputs = call.by_keras(values)
        values |= {id(tensor): value for tensor, value in zip(call.outputs, outputs, strict=True)}


def lower_to_tensorflow(graph: ModelGraph, lowering: Lowering, preprocessing: Preprocessing | None) -> Lowered:
    """See `lower`."""
    calls = TensorFlowCalls(graph, lowering)

    def compute(inputs: Any) -> Any:
        values = input_values(graph, inputs, preprocessing)
        for call in graph.calls:
            calls.compute(call, values)
        return output_values(graph, values)

    return Lowered(compute=compute, stateless=calls.stateless)


def input_values(graph: ModelGraph, inputs: Any, preprocessing: Preprocessing | None) -> Values:
    """A value for each input of a network; the first one is normalised if there is a preprocessing."""
    first, *others = inputs
    if preprocessing is not None:
        first = normalised(first, preprocessing)
    values = zip(graph.inputs, (first, *others), strict=True)
    return {id(tensor): tf.cast(value, tensor.dtype) for tensor, value in values}


def output_values(graph: ModelGraph, values: Values) -> Any:
    """The values of a network's outputs, in their structure."""
    return keras.tree.map_structure(lambda tensor: values[id(tensor)], graph.output)


def _forgets(operation: Any) -> bool:
    """Whether the operation itself isn't needed any more once its weights are taken over."""
    return any(has_role(operation, role) for role in Role if role is not Role.NORM)


def _cast(function: Callable[..., Tensor], dtype: Any) -> Callable[..., Tensor]:
    return lambda *tensors: function(*(tf.cast(tensor, dtype) for tensor in tensors))
