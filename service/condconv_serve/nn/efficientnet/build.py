"""EfficientNet and EfficientNet-Lite, static or CondConv, as one functional Keras model."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from condconv_serve.nn.building import DENSE_INITIALIZER, Conv, Style, convolve, network, pixels
from condconv_serve.nn.efficientnet.spec import EfficientNetSpec
from condconv_serve.nn.mbconv import mbconv


def build_efficientnet(architecture: EfficientNetSpec, *, input_size: int | None = None) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        architecture: what to build.
        input_size: pixels per side of the input; the architecture's `image_size` if None. Weights don't depend on it.

    Returns:
        A model that takes normalised pixels float32 `[B, input_size, input_size, 3]` and returns
        `{"logits": [B, num_classes], "routing": {"block_8": [B, num_experts], ...}}`; a static network's `routing`
        is empty.
    """
    style = Style(activation=architecture.activation)
    inputs = pixels(architecture, input_size)
    x = convolve(inputs, Conv(name="stem", filters=architecture.scaled_stem_filters, kernel_size=3, strides=2), style)
    routing: dict[str, Any] = {}
    for block in architecture.blocks():
        x, weights = mbconv(x, block, style)
        if weights is not None:
            routing[block.name] = weights
    x = convolve(x, Conv(name="head", filters=architecture.scaled_head_filters), style)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if architecture.dropout_rate:
        x = layers.Dropout(architecture.dropout_rate, name="dropout")(x)
    logits = layers.Dense(architecture.num_classes, kernel_initializer=DENSE_INITIALIZER.clone(), name="logits")(x)
    return network(architecture, inputs, logits, routing)
