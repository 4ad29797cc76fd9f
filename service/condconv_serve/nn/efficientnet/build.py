"""EfficientNet and EfficientNet-Lite, static or CondConv, as one functional Keras model."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from condconv_serve.nn.efficientnet.mbconv import CONV_INITIALIZER, DENSE_INITIALIZER, activate, mbconv, norm
from condconv_serve.nn.efficientnet.spec import EfficientNetSpec


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
    size = input_size or architecture.image_size
    inputs = keras.Input((size, size, 3), name="pixels")
    x = _conv_norm_activate(inputs, architecture.scaled_stem_filters, 3, 2, architecture.activation, name="stem")
    routing: dict[str, Any] = {}
    for block in architecture.blocks():
        x, routing_weights = mbconv(x, block)
        if routing_weights is not None:
            routing[block.name] = routing_weights
    x = _conv_norm_activate(x, architecture.scaled_head_filters, 1, 1, architecture.activation, name="head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if architecture.dropout_rate:
        x = layers.Dropout(architecture.dropout_rate, name="dropout")(x)
    logits = layers.Dense(architecture.num_classes, kernel_initializer=DENSE_INITIALIZER, name="logits")(x)
    return keras.Model(inputs, {"logits": logits, "routing": routing}, name=architecture.name.replace("-", "_"))


def _conv_norm_activate(x: Any, filters: int, kernel_size: int, strides: int, activation: str, *, name: str) -> Any:
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=CONV_INITIALIZER.clone(),
        name=name,
    )(x)
    return activate(norm(x, name=name), activation, name=name)
