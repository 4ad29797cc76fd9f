"""A `Lowering`: a value with a slot for each operation that a kind of device computes in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

Tensor = Any
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvCall:
    """One convolution of a batch, with all that is needed to compute it.

    Attributes:
        layer: the Keras layer, for its strides, padding, dilation rate and the like; its weights aren't read.
        kernel: with the norm folded in, `[kernel_h, kernel_w, C, filters]`, and with an axis `[num_experts, ...]` in
            front if it is mixed per example. In a depthwise kernel the last axis is the depth multiplier.
        x: features `[B, H, W, C]`.
        routing: weights of the experts `[B, num_experts]`; None if the kernel is the same for all examples.
        bias: `[1 or B, channels of the result]`.
        activation: what comes last, as a function of any shape.
        scale: `[B, 1, 1, C]`, a factor for each channel of `x` that is still to be applied; None if there is none. Only
            pointwise convolutions get one.
    """

    layer: Any
    kernel: Tensor
    x: Tensor
    bias: Tensor
    activation: Activation
    routing: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """The operations for a kind of device. Operations without a slot are the same everywhere.

    Attributes:
        pointwise_condconv: applies one 1x1 kernel per example, mixed from experts, at stride 1. Adds the bias,
            activates, and returns `[B, H, W, filters]`.
        depthwise_condconv: the same for one depthwise kernel per example, mixed from experts.
        constants: whether weights become constants of the graph; otherwise variables, which several graphs can share.
        fold_scales: whether the product of squeeze-and-excitation moves from the activations into the kernels of the
            convolution that follows, where those are smaller.
        dtype: of the convolutions.
    """

    pointwise_condconv: Callable[[ConvCall], Tensor]
    depthwise_condconv: Callable[[ConvCall], Tensor]
    constants: bool
    fold_scales: bool
    dtype: Any = tf.float32

    def hold(self, weight: Any) -> Tensor:
        """Keep a weight as a constant or a variable."""
        return weight if self.constants else tf.Variable(weight, trainable=False)
