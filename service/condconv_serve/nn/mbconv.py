"""The mobile inverted bottleneck block (MBConv), with ordinary or conditionally parameterised convolutions.

Sandler et al., CVPR 2018 (MobileNetV2, section 3.3); squeeze-and-excitation as in MnasNet and EfficientNet; CondConv as
in Yang et al., section 4.1: one routing per block, from the block's input, shared by its three convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import layers

from condconv_serve.nn.building import CONV_INITIALIZER, Conv, Style, convolve, route

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockArgs:
    """One block after scaling.

    `se_filters` 0: no squeeze-and-excitation; `num_experts` 0: no CondConv. `skips` says whether the input is added to
    the output where both have the same shape.
    """

    name: str
    kernel_size: int
    strides: int
    expand_ratio: int
    in_filters: int
    out_filters: int
    se_filters: int = 0
    num_experts: int = 0
    skips: bool = True


def mbconv(inputs: Tensor, args: BlockArgs, style: Style) -> tuple[Tensor, Tensor | None]:
    """Append one block to a functional network.

    Args:
        inputs: `[B, H, W, args.in_filters]`.
        args: the block's parameters; its name prefixes the names of the layers.
        style: what the network's convolutions have in common.

    Returns:
        The output `[B, H', W', args.out_filters]`, and the routing weights `[B, num_experts]`, or None in a static
        block.
    """
    name = args.name
    weights = route(inputs, args.num_experts, name=name)
    x = inputs
    if args.expand_ratio != 1:
        expand = Conv(name=f"{name}_expand", filters=args.in_filters * args.expand_ratio)
        x = convolve(x, expand, style, weights)
    depthwise = Conv(name=f"{name}_depthwise", filters=None, kernel_size=args.kernel_size, strides=args.strides)
    x = convolve(x, depthwise, style, weights)
    if args.se_filters:
        x = _squeeze_and_excite(x, args.se_filters, style.activation, name=f"{name}_se")
    x = convolve(x, Conv(name=f"{name}_project", filters=args.out_filters, activate=False), style, weights)
    if args.skips and args.strides == 1 and args.in_filters == args.out_filters:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x, weights


def _squeeze_and_excite(x: Tensor, filters: int, activation: str, *, name: str) -> Tensor:
    channels = x.shape[-1]
    scale = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    for count, function, step in ((filters, activation, "reduce"), (channels, "sigmoid", "expand")):
        initializer = CONV_INITIALIZER.clone()
        conv = layers.Conv2D(count, 1, activation=function, kernel_initializer=initializer, name=f"{name}_{step}")
        scale = conv(scale)
    return layers.Multiply(name=f"{name}_scale")([x, scale])
