"""Rebuilds a functional network layer by layer, each computed as a lowering says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from condconv_serve.runtime.fold import fold_batch_norms
from condconv_serve.runtime.layer_kinds import Role, has_role, is_condconv
from condconv_serve.runtime.lowering.fusion import following_activations, scaled_convolutions
from condconv_serve.runtime.lowering.layers import activation_of, convolution, dense
from condconv_serve.runtime.lowering.slots import Lowering, Tensor
from condconv_serve.runtime.model_graph import ModelGraph


def lower(model: keras.Model, lowering: Lowering) -> keras.Model:
    """Rebuild a functional model for inference: norms folded, layers computed as `lowering` says.

    Returns:
        A model with the same inputs and outputs; the layers known here hold their weights as `lowering.hold` does.

    Raises:
        ConfigurationError: the model is not functional.
    """
    graph = ModelGraph(model)
    weights, folded = fold_batch_norms(graph)
    scaled = scaled_convolutions(graph) if lowering.fold_scales else {}
    activations = following_activations(graph, folded)
    identities = {*folded, *scaled, *(activation.name for activation in activations.values())}
    scales: dict[str, Tensor] = {}

    def replacement(layer: Any) -> Any:
        if layer.name in identities:
            return _Lowered(lambda x, *_: x, layer)
        if layer.name in weights:
            activation = activation_of(activations.get(layer.name, layer))
            return _Lowered(convolution(layer, weights[layer.name], activation, lowering), layer, dtype=lowering.dtype)
        if has_role(layer, Role.ACTIVATION):
            return _Lowered(activation_of(layer), layer)
        if has_role(layer, Role.DENSE):
            return _Lowered(dense(layer, lowering), layer)
        # A layer remembers every model that calls it, so the original's would keep this one and its weights alive.
        return type(layer).from_config(layer.get_config()) if has_role(layer, Role.STATELESS) else layer

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, _Lowered):
            return layer(*args, **kwargs)
        # Training flags and masks mean nothing to a lowered layer.
        tensors = keras.tree.flatten((args, [kwargs[name] for name in ("inputs", "routing_weights") if name in kwargs]))
        if layer.name in scaled:
            x, scale = sorted(tensors, key=lambda t: t.shape[1] == 1)
            scales[scaled[layer.name]] = scale
            return x
        if layer.name in scales:
            tensors.append(scales[layer.name])
        return layer(*tensors)

    return keras.models.clone_model(model, clone_function=replacement, call_function=call)


def is_stateless(lowered: keras.Model) -> bool:
    """Whether a lowered model holds nothing but constants, and so can be built straight into a graph."""
    return all(
        isinstance(operation, _Lowered | keras.layers.InputLayer) or has_role(operation, Role.STATELESS)
        for operation in lowered.operations
    )


class _Lowered(keras.layers.Layer):
    """A layer that computes what another one does, as a plain function of its inputs."""

    def __init__(self, compute: Callable[..., Tensor], original: Any, *, dtype: Any = tf.float32) -> None:
        super().__init__(name=original.name, dtype=dtype.name)
        self._compute = compute
        # Kept from Keras's sight: it must not become a sublayer whose variables would be this layer's.
        self._output_shape = original.compute_output_shape
        self._inputs = 2 if is_condconv(original) else 1

    def compute_output_spec(self, *inputs: Any) -> Any:
        # Known beforehand; Keras would find it out by tracing, with a copy of all weights.
        shape = self._output_shape(*(tensor.shape for tensor in inputs[: self._inputs]))
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def call(self, *inputs: Tensor) -> Tensor:
        return self._compute(*inputs)
