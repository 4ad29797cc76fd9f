"""How a network's layers are computed for inference, one `Lowering` per kind of device.

All lowerings compute what the plain Keras layers compute; they differ in which operations the device is good at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from service.nn import CondConv2D, DepthwiseCondConv2D, mix_experts
from service.runtime.fold import FoldedConvolution, fold_batch_norms

Tensor = Any
DepthwiseCondConv = Callable[[Any, FoldedConvolution, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Lowering:
    """The operations that a kind of device gets; what isn't named here is computed alike everywhere."""

    depthwise_condconv: DepthwiseCondConv


def lower(model: keras.Model, lowering: Lowering) -> keras.Model:
    """Rebuild a functional model for inference: norms folded, convolutions computed as `lowering` says.

    Returns:
        A model with the same inputs and outputs, whose convolutions hold their weights as constants.
    """
    weights, folded = fold_batch_norms(model)

    def replacement(layer: Any) -> Any:
        if layer.name in folded:
            return _Lowered(lambda x, *_: x, name=layer.name)
        if layer.name in weights:
            return _Lowered(_convolution(layer, weights[layer.name], lowering), name=layer.name)
        if type(layer) is keras.layers.Activation:
            return _Lowered(_activation(layer), name=layer.name)
        if type(layer) is keras.layers.Dense:
            return _Lowered(_dense(layer), name=layer.name)
        return layer

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(layer, _Lowered):
            return layer(*args, **kwargs)
        # Training flags and masks mean nothing to a lowered layer.
        return layer(*args, *(kwargs[name] for name in ("inputs", "routing_weights") if name in kwargs))

    return keras.models.clone_model(model, clone_function=replacement, call_function=call)


class _Lowered(keras.layers.Layer):
    """A layer that is just a function of its inputs."""

    def __init__(self, compute: Callable[..., Tensor], *, name: str) -> None:
        super().__init__(name=name)
        self._compute = compute

    def call(self, *inputs: Tensor) -> Tensor:
        return self._compute(*inputs)


def _convolution(layer: Any, weights: FoldedConvolution, lowering: Lowering) -> Callable[..., Tensor]:
    activate = _activation(layer)
    if isinstance(layer, CondConv2D | DepthwiseCondConv2D):
        depthwise = isinstance(layer, DepthwiseCondConv2D)
        convolve = lowering.depthwise_condconv if depthwise else _condconv

        def condconv(x: Tensor, routing: Tensor) -> Tensor:
            y = convolve(layer, weights, x, routing)
            if weights.expert_bias is not None:
                y += tf.matmul(routing, weights.expert_bias)[:, None, None, :]
            return activate(tf.nn.bias_add(y, weights.bias))

        return condconv
    static = _depthwise if isinstance(layer, keras.layers.DepthwiseConv2D) else _conv
    return lambda x: activate(tf.nn.bias_add(static(layer, weights, x), weights.bias))


def _activation(layer: Any) -> Callable[[Tensor], Tensor]:
    if layer.activation is keras.activations.silu:
        # Keras's comes with a gradient of its own, whose wrapping hides the product from Grappler.
        return lambda x: x * tf.sigmoid(x)
    activation: Callable[[Tensor], Tensor] = layer.activation
    return activation


def _dense(layer: Any) -> Callable[[Tensor], Tensor]:
    kernel = np.asarray(layer.kernel)
    bias = np.zeros(kernel.shape[-1], kernel.dtype) if layer.bias is None else np.asarray(layer.bias)
    activate = _activation(layer)
    return lambda x: activate(tf.nn.bias_add(tf.matmul(x, kernel), bias))


def _conv(layer: Any, weights: FoldedConvolution, x: Tensor) -> Tensor:
    return tf.nn.conv2d(x, weights.kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate)


def _depthwise(layer: Any, weights: FoldedConvolution, x: Tensor) -> Tensor:
    return _depthwise_conv(layer, x, tf.constant(weights.kernel))


def _depthwise_conv(layer: Any, x: Tensor, kernel: Tensor) -> Tensor:
    vertical, horizontal = layer.strides
    return tf.nn.depthwise_conv2d(
        x, kernel, (1, vertical, horizontal, 1), layer.padding.upper(), dilations=layer.dilation_rate
    )


def _condconv(layer: CondConv2D, weights: FoldedConvolution, x: Tensor, routing: Tensor) -> Tensor:
    """Mix all kernels in one matrix product, apply them in one batched matrix product."""
    return layer.convolve(x, mix_experts(routing, tf.constant(weights.kernel)))


def _batch_folded_depthwise(
    layer: DepthwiseCondConv2D, weights: FoldedConvolution, x: Tensor, routing: Tensor
) -> Tensor:
    """Fold the batch into the channels, so that one ordinary depthwise convolution applies every example's kernel."""
    if layer.dilation_rate != (1, 1) or layer.strides[0] != layer.strides[1]:
        return _shifted_products(layer, weights, x, routing)  # TensorFlow's operation can't
    _, height, width, channels = ops.shape(x)
    (kernel_height, kernel_width), multiplier = layer.kernel_size, layer.depth_multiplier
    kernels = mix_experts(routing, tf.constant(weights.kernel))
    kernels = tf.transpose(kernels, (1, 2, 0, 3, 4))
    kernels = tf.reshape(kernels, (kernel_height, kernel_width, -1, multiplier))
    folded = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, -1))
    y = _depthwise_conv(layer, folded, kernels)
    _, height, width, _ = ops.shape(y)
    y = tf.reshape(y, (height, width, -1, channels * multiplier))
    return tf.transpose(y, (2, 0, 1, 3))


def _shifted_products(layer: DepthwiseCondConv2D, weights: FoldedConvolution, x: Tensor, routing: Tensor) -> Tensor:
    """A sum of shifted products: a compiler makes one fused kernel of it."""
    return layer.convolve(x, mix_experts(routing, tf.constant(weights.kernel)))


CPU = Lowering(depthwise_condconv=_batch_folded_depthwise)
"""oneDNN operations, any batch size."""

XLA = Lowering(depthwise_condconv=_shifted_products)
"""For compilation to GPU and TPU kernels; batch sizes are fixed."""
