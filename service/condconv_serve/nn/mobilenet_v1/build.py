"""MobileNetV1, static or CondConv, as one functional Keras model."""

from __future__ import annotations

from typing import Any

import keras

from condconv_serve.nn.building import Conv, Style, classify, convolve, network, pixels, route
from condconv_serve.nn.mobilenet_v1.spec import MobileNetV1Spec


def build_mobilenet_v1(architecture: MobileNetV1Spec, *, input_size: int | None = None) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        architecture: what to build.
        input_size: pixels per side of the input; the architecture's `image_size` if None.

    Returns:
        A model as `Family.build` says; its blocks are `block_5` to `block_12` and `classifier` if it has experts where
        the paper has them.
    """
    style = Style(activation="relu6", norm_epsilon=architecture.norm_epsilon, padding=architecture.padding)
    inputs = pixels(architecture, input_size)
    norm = architecture.pointwise_norm
    stem = Conv(name="stem", filters=architecture.stem_filters, kernel_size=3, strides=2, norm=norm)
    x = convolve(inputs, stem, style)
    routing: dict[str, Any] = {}
    for block in architecture.blocks():
        weights = route(x, block.num_experts, name=block.name)
        if weights is not None:
            routing[block.name] = weights
        depthwise = Conv(name=f"{block.name}_depthwise", filters=None, kernel_size=3, strides=block.strides)
        x = convolve(x, depthwise, style, weights)
        pointwise = Conv(name=f"{block.name}_pointwise", filters=block.out_filters, norm=norm)
        x = convolve(x, pointwise, style, weights)
    return network(architecture, inputs, classify(x, architecture, routing), routing)
