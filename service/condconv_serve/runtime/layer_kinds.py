"""The layers that the engines know, as a table. A new layer is a new line."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import keras

from condconv_serve.nn import CondConv2D, CondConvDense, DepthwiseCondConv2D
from condconv_serve.nn.ssd import ClassScores, DecodeBoxes


class Role(enum.Enum):
    """What is done with a layer when a network is lowered."""

    CONVOLUTION = "computed from its folded weights, with the norm and the activation that follow it"
    NORM = "folded into the convolution before it"
    ACTIVATION = "computed by the convolution before it, or as a plain function"
    DENSE = "computed as one matrix product from its folded weights, with what follows it, as a convolution is"
    STATELESS = "computed by Keras; it has no weights, so it is built anew from its config"


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What the engines know of one class of layers.

    Attributes:
        role: what lowering does with it.
        depthwise: whether each channel is convolved separately.
        experts: whether the kernel is mixed per example, from experts: it is called with features and routing weights.
    """

    role: Role
    depthwise: bool = False
    experts: bool = False


# A class derived from one of these may compute something else, so it is none of them.
LAYER_KINDS: Final[Mapping[type, LayerKind]] = MappingProxyType(
    {
        keras.layers.Conv2D: LayerKind(Role.CONVOLUTION),
        keras.layers.DepthwiseConv2D: LayerKind(Role.CONVOLUTION, depthwise=True),
        CondConv2D: LayerKind(Role.CONVOLUTION, experts=True),
        DepthwiseCondConv2D: LayerKind(Role.CONVOLUTION, depthwise=True, experts=True),
        keras.layers.BatchNormalization: LayerKind(Role.NORM),
        keras.layers.Activation: LayerKind(Role.ACTIVATION),
        keras.layers.Dense: LayerKind(Role.DENSE),
        CondConvDense: LayerKind(Role.DENSE, experts=True),
        keras.layers.Add: LayerKind(Role.STATELESS),
        keras.layers.Concatenate: LayerKind(Role.STATELESS),
        keras.layers.Dropout: LayerKind(Role.STATELESS),
        keras.layers.GlobalAveragePooling2D: LayerKind(Role.STATELESS),
        keras.layers.Identity: LayerKind(Role.STATELESS),
        keras.layers.MaxPooling2D: LayerKind(Role.STATELESS),
        keras.layers.Multiply: LayerKind(Role.STATELESS),
        keras.layers.ReLU: LayerKind(Role.STATELESS),
        keras.layers.Reshape: LayerKind(Role.STATELESS),
        keras.layers.ZeroPadding2D: LayerKind(Role.STATELESS),
        ClassScores: LayerKind(Role.STATELESS),
        DecodeBoxes: LayerKind(Role.STATELESS),
    }
)

_WITH_EXPERTS = tuple(layer for layer, kind in LAYER_KINDS.items() if kind.experts)


def kind_of(layer: Any) -> LayerKind | None:
    """Look up a layer, operation or model; None if the engines don't know it, and Keras computes it as it is."""
    kind = LAYER_KINDS.get(type(layer))
    if kind is not None and kind.role is Role.CONVOLUTION:
        return kind if getattr(layer, "data_format", "channels_last") == "channels_last" else None
    return kind


def has_role(layer: Any, role: Role) -> bool:
    """Whether the engines know a layer, and in this role."""
    kind = kind_of(layer)
    return kind is not None and kind.role is role


def has_kernel(layer: Any) -> bool:
    """Whether a layer has a kernel that the engines know, into which a norm that follows it can be folded."""
    return has_role(layer, Role.CONVOLUTION) or has_role(layer, Role.DENSE)


def is_pointwise(layer: Any) -> bool:
    """Whether a layer is a convolution that mixes the channels of each pixel by itself: one matrix product."""
    kind = kind_of(layer)
    return (
        kind is not None
        and kind.role is Role.CONVOLUTION
        and not kind.depthwise
        and tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.strides) == (1, 1)
        and getattr(layer, "groups", 1) == 1
    )


def is_condconv(layer: Any) -> bool:
    """Whether a layer mixes experts by routing weights, its second input; derived classes do so too."""
    return isinstance(layer, _WITH_EXPERTS)
