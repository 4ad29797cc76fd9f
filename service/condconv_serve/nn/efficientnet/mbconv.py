"""The mobile inverted bottleneck block (MBConv), with ordinary or conditionally parameterised convolutions.

Sandler et al., CVPR 2018 (MobileNetV2, section 3.3); squeeze-and-excitation as in EfficientNet; CondConv as in Yang et
al., section 4.1: one routing per block, from the block's input, shared by its three convolutions.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from condconv_serve.nn.condconv import CondConv2D, DepthwiseCondConv2D
from condconv_serve.nn.efficientnet.spec import BlockArgs

Tensor = Any
BATCH_NORM = {"epsilon": 1e-3, "momentum": 0.99}
# The EfficientNet authors' initialisers: truncation would change the variance.
CONV_INITIALIZER = keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")
DENSE_INITIALIZER = keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_out", distribution="uniform")


def mbconv(inputs: Tensor, args: BlockArgs) -> tuple[Tensor, Tensor | None]:
    """Append one block to a functional network.

    Args:
        inputs: `[B, H, W, args.in_filters]`.
        args: the block's parameters; its name prefixes the names of the layers.

    Returns:
        The output `[B, H', W', args.out_filters]`, and the routing weights `[B, num_experts]`, or None in a static
        block.
    """
    name = args.name
    expanded = args.in_filters * args.expand_ratio
    routing_weights = None
    if args.num_experts:
        pooled = layers.GlobalAveragePooling2D(name=f"{name}_routing_pool")(inputs)
        routing_weights = layers.Dense(
            args.num_experts, activation="sigmoid", kernel_initializer=DENSE_INITIALIZER, name=f"{name}_routing"
        )(pooled)

    x = inputs
    if args.expand_ratio != 1:
        x = _pointwise(x, routing_weights, expanded, args.num_experts, name=f"{name}_expand")
        x = norm(x, name=f"{name}_expand")
        x = activate(x, args.activation, name=f"{name}_expand")
    x = _depthwise(x, routing_weights, args)
    x = norm(x, name=f"{name}_depthwise")
    x = activate(x, args.activation, name=f"{name}_depthwise")
    if args.se_filters:
        x = _squeeze_and_excite(x, args.se_filters, args.activation, name=f"{name}_se")
    x = _pointwise(x, routing_weights, args.out_filters, args.num_experts, name=f"{name}_project")
    x = norm(x, name=f"{name}_project")
    if args.strides == 1 and args.in_filters == args.out_filters:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x, routing_weights


def norm(x: Tensor, *, name: str) -> Tensor:
    """Append the batch normalisation that follows the convolution `name`."""
    return layers.BatchNormalization(**BATCH_NORM, name=f"{name}_norm")(x)


def activate(x: Tensor, activation: str, *, name: str) -> Tensor:
    """Append the activation that follows the convolution `name`."""
    return layers.Activation(activation, name=f"{name}_activation")(x)


def _pointwise(x: Tensor, routing_weights: Tensor | None, filters: int, num_experts: int, *, name: str) -> Tensor:
    common: dict[str, Any] = {"use_bias": False, "kernel_initializer": CONV_INITIALIZER.clone(), "name": name}
    if routing_weights is None:
        return layers.Conv2D(filters, 1, **common)(x)
    return CondConv2D(filters, 1, num_experts, **common)(x, routing_weights)


def _depthwise(x: Tensor, routing_weights: Tensor | None, args: BlockArgs) -> Tensor:
    initializer = CONV_INITIALIZER.clone()
    common: dict[str, Any] = {
        "strides": args.strides,
        "padding": "same",
        "use_bias": False,
        "name": f"{args.name}_depthwise",
    }
    if routing_weights is None:
        return layers.DepthwiseConv2D(args.kernel_size, depthwise_initializer=initializer, **common)(x)
    return DepthwiseCondConv2D(args.kernel_size, args.num_experts, kernel_initializer=initializer, **common)(
        x, routing_weights
    )


def _squeeze_and_excite(x: Tensor, filters: int, activation: str, *, name: str) -> Tensor:
    channels = x.shape[-1]
    scale = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    for count, function, step in ((filters, activation, "reduce"), (channels, "sigmoid", "expand")):
        initializer = CONV_INITIALIZER.clone()
        conv = layers.Conv2D(count, 1, activation=function, kernel_initializer=initializer, name=f"{name}_{step}")
        scale = conv(scale)
    return layers.Multiply(name=f"{name}_scale")([x, scale])
