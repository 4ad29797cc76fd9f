"""MobileNetV2, MnasNet and EfficientNet, static or CondConv, as one functional Keras model."""

from __future__ import annotations

from typing import Any

import keras

from condconv_serve.nn.building import Conv, Style, classify, convolve, network, pixels, route
from condconv_serve.nn.inverted import InvertedSpec
from condconv_serve.nn.mbconv import mbconv
from condconv_serve.nn.spec import HEAD


def build_inverted(architecture: InvertedSpec, *, input_size: int | None = None) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        architecture: what to build.
        input_size: pixels per side of the input; the architecture's `image_size` if None.

    Returns:
        A model as `Family.build` says.
    """
    style = Style(
        activation=architecture.activation,
        norm_epsilon=architecture.norm_epsilon,
        padding=architecture.padding,
    )
    inputs = pixels(architecture, input_size)
    stem = Conv(name="stem", filters=architecture.stem_filters, kernel_size=3, strides=2)
    x = convolve(inputs, stem, style)
    routing: dict[str, Any] = {}
    for block in architecture.blocks():
        x, weights = mbconv(x, block, style)
        if weights is not None:
            routing[block.name] = weights
    weights = route(x, architecture.experts_of(HEAD), name=HEAD)
    if weights is not None:
        routing[HEAD] = weights
    x = convolve(x, Conv(name=HEAD, filters=architecture.head_filters), style, weights)
    return network(architecture, inputs, classify(x, architecture, routing), routing)
