"""Convolutions made of TensorFlow's own operations: those for the slots of lowerings, and those that need no slot.

Each function takes a `ConvCall` and returns `[B, H', W', channels]`, with the bias added, and activated.
"""

from __future__ import annotations

import tensorflow as tf

from condconv_serve.nn import mix_experts
from condconv_serve.runtime.lowering.slots import Activation, ConvCall, Tensor


def conv(call: ConvCall) -> Tensor:
    """Apply one kernel to all examples; with a scale it becomes one kernel per example."""
    layer, x, kernel = call.layer, call.x, call.kernel
    if call.scale is not None:
        kernels = tf.reshape(call.scale, (-1, 1, x.shape[-1], 1)) * kernel
        return _apply_pointwise(x, kernels, call.bias, call.activation)
    y = tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper(), dilations=layer.dilation_rate)
    return call.activation(tf.nn.bias_add(y, call.bias[0]))


def depthwise_conv(call: ConvCall) -> Tensor:
    """Apply one depthwise kernel to all examples."""
    layer = call.layer
    strides = (1, *layer.strides, 1)
    y = tf.nn.depthwise_conv2d(call.x, call.kernel, strides, layer.padding.upper(), dilations=layer.dilation_rate)
    return call.activation(tf.nn.bias_add(y, tf.reshape(call.bias, (-1,))))


def pointwise_condconv(call: ConvCall) -> Tensor:
    """Mix all kernels in one matrix product, apply them in one batched matrix product."""
    channels = call.x.shape[-1]
    kernels = tf.reshape(mix_experts(call.routing, call.kernel), (-1, 1, channels, call.layer.filters))
    if call.scale is not None:
        kernels *= tf.reshape(call.scale, (-1, 1, channels, 1))
    return _apply_pointwise(call.x, kernels, call.bias, call.activation)


def shifted_products(call: ConvCall) -> Tensor:
    """Apply one kernel per example as the Keras layer does, for any layer with experts.

    A depthwise layer is a sum of shifted products, which a compiler turns into one kernel.
    """
    y = call.layer.convolve(call.x, mix_experts(call.routing, call.kernel))
    return call.activation(y + _per_example(call.bias))


def _apply_pointwise(x: Tensor, kernels: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """Apply one kernel per example: `[B, H, W, C]` with `[B, 1, C, filters]`.

    Bias and activation come before the reshape, which would keep engines from fusing them into the product. Grappler
    fuses a bias only if a factor stands before it: the factor is one, but written so that Grappler can't see it.
    OpenVINO knows the batch size, sees it, and drops it.
    """
    _, height, width, channels = x.shape
    one = tf.cast(tf.minimum(tf.shape(x)[0], 1), x.dtype)
    y = tf.matmul(tf.reshape(x, (-1, 1, height * width, channels)), kernels)
    return tf.reshape(activation(one * y + _per_example(bias)), (-1, height, width, kernels.shape[-1]))


def _per_example(bias: Tensor) -> Tensor:
    return tf.reshape(bias, (-1, 1, 1, bias.shape[-1]))
