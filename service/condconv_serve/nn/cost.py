"""The cost of a network: parameters and multiply-adds, counted from its layers' calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from condconv_serve.domain import Cost
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.condconv import CondConv2D, DepthwiseCondConv2D
from condconv_serve.nn.condconv_dense import CondConvDense
from condconv_serve.nn.model_graph import ModelGraph


def cost(model: keras.Model) -> Cost:
    """Count a functional model's cost at the input size that it was built for.

    A multiply-add is two floating-point operations. Convolutions, dense layers and the mixing of CondConv kernels
    consist of multiply-adds. A product or a sum alone counts half (swish, squeeze-and-excitation, residuals, biases,
    pooling). Batch normalisation costs nothing, since it folds into the convolutions. Counted like this, the networks
    of the CondConv paper have the figures of its table 3.

    Raises:
        ValueError: the model's input size is open, so multiply-adds are undefined.
    """
    operations = _sum(model)
    return Cost(
        parameters=sum(math.prod(variable.shape) for variable in model.trainable_variables),
        multiply_adds=None if operations is None else operations // 2,
    )


def _sum(model: keras.Model) -> int | None:
    """Floating-point operations of all calls of a model's layers; None if they can't be known."""
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    try:
        calls = ModelGraph(model).calls
    except ConfigurationError:
        return None
    counts = [
        _operations(call.operation, call.inputs, call.outputs[0])
        for call in calls
        if isinstance(call.operation, keras.Layer)
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _operations(layer: Any, inputs: Sequence[Any], output: Any) -> int | None:
    """Floating-point operations of one call of a layer for one image."""
    if isinstance(layer, keras.Model):
        return _sum(layer)
    if isinstance(layer, CondConv2D | DepthwiseCondConv2D | CondConvDense):
        experts = [weight for weight in (layer.kernel, layer.bias) if weight is not None]
        mixing = 2 * sum(math.prod(weight.shape) for weight in experts)
        kernel = math.prod(layer.kernel.shape[1:])
        return 2 * _positions(output) * kernel + mixing + _bias_and_activation(layer, output)
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
        return 2 * _positions(output) * math.prod(layer.kernel.shape) + _bias_and_activation(layer, output)
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return _size(inputs[0])
    if isinstance(layer, keras.layers.Add | keras.layers.Multiply):
        return _size(output) * (len(inputs) - 1)
    if isinstance(layer, keras.layers.Activation):
        return _bias_and_activation(layer, output)
    return None if any(len(weight.shape) > 1 for weight in layer.weights) else 0


def _bias_and_activation(layer: Any, output: Any) -> int:
    biased = getattr(layer, "bias", None) is not None
    multiplied = layer.activation is keras.activations.silu
    return _size(output) * (biased + multiplied)


def _positions(output: Any) -> int:
    return _size(output) // output.shape[-1]


def _size(tensor: Any) -> int:
    """Numbers per image in a tensor."""
    if None in tensor.shape[1:]:
        raise ValueError(f"Multiply-adds need a fixed input size, but {tensor.name} has shape {tensor.shape}.")
    return math.prod(tensor.shape[1:])
