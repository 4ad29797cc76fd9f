"""ResNet-50, static or CondConv, as one functional Keras model."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from condconv_serve.nn.building import Conv, Style, activate, classify, convolve, network, pixels, route
from condconv_serve.nn.resnet.spec import BottleneckArgs, ResNetSpec

Tensor = Any


def build_resnet(architecture: ResNetSpec, *, input_size: int | None = None) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        architecture: what to build.
        input_size: pixels per side of the input; the architecture's `image_size` if None.

    Returns:
        A model as `Family.build` says; its blocks are `block_13` to `block_15` and `classifier` if it has experts where
        the paper has them.
    """
    style = Style(
        activation="relu",
        norm_epsilon=architecture.norm_epsilon,
        padding=architecture.padding,
        use_bias=architecture.use_bias,
    )
    inputs = pixels(architecture, input_size)
    x = convolve(inputs, Conv(name="stem", filters=architecture.stem_filters, kernel_size=7, strides=2), style)
    x = _max_pool(x, style)
    routing: dict[str, Any] = {}
    for block in architecture.blocks():
        weights = route(x, block.num_experts, name=block.name)
        if weights is not None:
            routing[block.name] = weights
        x = _bottleneck(x, block, style, weights, stride_first=architecture.stride_first)
    return network(architecture, inputs, classify(x, architecture, routing), routing)


def _max_pool(x: Tensor, style: Style) -> Tensor:
    if style.padding == "same":
        return layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    # Zeros are as good as nothing: no number is below zero after the activation.
    return layers.MaxPooling2D(3, 2, name="stem_pool")(layers.ZeroPadding2D(1, name="stem_pool_pad")(x))


def _bottleneck(
    inputs: Tensor, args: BottleneckArgs, style: Style, weights: Tensor | None, *, stride_first: bool
) -> Tensor:
    name, filters = args.name, args.filters
    first, second = (args.strides, 1) if stride_first else (1, args.strides)
    x = convolve(inputs, Conv(name=f"{name}_reduce", filters=filters, strides=first), style, weights)
    x = convolve(x, Conv(name=f"{name}_conv", filters=filters, kernel_size=3, strides=second), style, weights)
    x = convolve(x, Conv(name=f"{name}_expand", filters=args.out_filters, activate=False), style, weights)
    shortcut = inputs
    if args.projects:
        conv = Conv(name=f"{name}_shortcut", filters=args.out_filters, strides=args.strides, activate=False)
        shortcut = convolve(inputs, conv, style)
    return activate(layers.Add(name=f"{name}_add")([x, shortcut]), style.activation, name=name)
