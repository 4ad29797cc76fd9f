"""The lowering for CPUs: operations that oneDNN computes, for any batch size, with all weights as constants."""

from __future__ import annotations

from dataclasses import replace

import tensorflow as tf
from keras import ops

from condconv_serve.nn import mix_experts
from condconv_serve.runtime.lowering.convolutions import depthwise_conv, pointwise_condconv, shifted_products
from condconv_serve.runtime.lowering.slots import ConvCall, Lowering, Tensor


def depthwise_condconv(call: ConvCall) -> Tensor:
    """Fold the batch into the channels, so that one ordinary depthwise convolution applies every example's kernel."""
    layer, x, bias = call.layer, call.x, call.bias
    if layer.dilation_rate != (1, 1) or layer.strides[0] != layer.strides[1]:
        return shifted_products(call)  # TensorFlow's operation can't
    batch, height, width, channels = ops.shape(x)
    (kernel_height, kernel_width), multiplier = layer.kernel_size, layer.depth_multiplier
    kernels = tf.transpose(mix_experts(call.routing, call.kernel), (1, 2, 0, 3, 4))
    kernels = tf.reshape(kernels, (kernel_height, kernel_width, -1, multiplier))
    folded = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, -1))
    per_example = tf.broadcast_to(bias, (batch, bias.shape[-1]))
    y = depthwise_conv(replace(call, kernel=kernels, x=folded, bias=per_example, routing=None))
    _, height, width, _ = ops.shape(y)
    y = tf.reshape(y, (height, width, -1, channels * multiplier))
    return tf.transpose(y, (2, 0, 1, 3))


CPU = Lowering(
    pointwise_condconv=pointwise_condconv, depthwise_condconv=depthwise_condconv, constants=True, fold_scales=True
)
