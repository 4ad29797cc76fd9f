"""Known layers as functions of tensors that hold folded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from condconv_serve.nn import mixed_product
from condconv_serve.runtime.fold import FoldedWeights
from condconv_serve.runtime.layer_kinds import is_pointwise, kind_of
from condconv_serve.runtime.lowering.convolutions import conv, depthwise_conv, shifted_products
from condconv_serve.runtime.lowering.slots import Activation, ConvCall, Lowering, Tensor


def activation_of(layer: Any) -> Activation:
    """What an activation layer, or the end of another layer, computes."""
    if layer.activation is keras.activations.silu:
        # Keras's comes with a gradient of its own, whose wrapping hides the product from Grappler.
        return lambda x: x * tf.sigmoid(x)
    activation: Activation = layer.activation
    return activation


def dense(layer: Any, weights: FoldedWeights, activation: Activation, lowering: Lowering) -> Callable[..., Tensor]:
    """A dense layer, as a function of `[..., C]`, and of routing weights if it has experts; then of `[B, C]`."""
    kernel, bias = lowering.hold(weights.kernel), lowering.hold(weights.bias)
    kind = kind_of(layer)
    if kind is None or not kind.experts:
        return lambda x: activation(tf.nn.bias_add(tf.matmul(x, kernel), bias))
    expert_bias = None if weights.expert_bias is None else lowering.hold(weights.expert_bias)

    def with_routing(x: Tensor, routing: Tensor) -> Tensor:
        y = tf.nn.bias_add(mixed_product(x, routing, kernel), bias)
        return activation(y if expert_bias is None else y + tf.matmul(routing, expert_bias))

    return with_routing


def convolution(
    layer: Any, weights: FoldedWeights, activation: Activation, lowering: Lowering
) -> Callable[..., Tensor]:
    """A convolution, as a function of features, routing weights if it has experts, and a scale if it gets one."""

    def hold(weight: NDArray[np.float32]) -> Tensor:
        return lowering.hold(weight if lowering.dtype == tf.float32 else tf.cast(weight, lowering.dtype))

    kernel, bias = hold(weights.kernel), hold(weights.bias[None])
    compute = _operation(layer, lowering)
    kind = kind_of(layer)
    if kind is None or not kind.experts:
        return lambda x, scale=None: compute(
            ConvCall(layer=layer, kernel=kernel, x=x, bias=bias, activation=activation, scale=scale)
        )
    expert_bias = None if weights.expert_bias is None else hold(weights.expert_bias)

    def with_routing(x: Tensor, routing: Tensor, scale: Tensor | None = None) -> Tensor:
        mixed = bias if expert_bias is None else bias + tf.matmul(routing, expert_bias)
        return compute(
            ConvCall(layer=layer, kernel=kernel, x=x, bias=mixed, activation=activation, routing=routing, scale=scale)
        )

    return with_routing


def _operation(layer: Any, lowering: Lowering) -> Callable[[ConvCall], Tensor]:
    kind = kind_of(layer)
    if kind is None or not kind.experts:
        return depthwise_conv if kind is not None and kind.depthwise else conv
    if kind.depthwise:
        return lowering.depthwise_condconv
    return lowering.pointwise_condconv if is_pointwise(layer) else shifted_products
