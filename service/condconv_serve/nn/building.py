"""What families build their networks of: convolutions, routers and classifiers, static or with experts.

A convolution called `name` is followed by its batch norm `<name>_norm`, if it has one, and, perhaps, by its activation.
Convolutions that share a routing get the same routing weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from condconv_serve.nn.condconv import CondConv2D, DepthwiseCondConv2D
from condconv_serve.nn.condconv_dense import CondConvDense
from condconv_serve.nn.spec import CLASSIFIER, NetworkSpec, Padding

Tensor = Any
# The EfficientNet authors' initialisers: truncation would change the variance.
CONV_INITIALIZER = keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")
DENSE_INITIALIZER = keras.initializers.VarianceScaling(scale=1 / 3, mode="fan_out", distribution="uniform")
_MOMENTUM = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What the convolutions of a network have in common.

    Attributes:
        activation: Keras's name of it.
        norm_epsilon: what batch norms add to the variance.
        padding: how they pad at stride 2.
        use_bias: whether they have a bias besides the norm's.
    """

    activation: str
    norm_epsilon: float = 1e-3
    padding: Padding = "same"
    use_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """One convolution: its name, its size, and its output channels (None: depthwise). Without a norm it has a bias."""

    name: str
    filters: int | None
    kernel_size: int = 1
    strides: int = 1
    activate: bool = True
    norm: bool = True


def convolve(x: Tensor, conv: Conv, style: Style, routing_weights: Tensor | None = None) -> Tensor:
    """Append a convolution, its norm and its activation.

    Args:
        x: `[B, H, W, C]`.
        conv: what to append.
        style: what the network's convolutions have in common.
        routing_weights: `[B, num_experts]` if its kernel is mixed from experts.
    """
    padding = "same"
    if style.padding == "symmetric" and conv.strides > 1 and conv.kernel_size > 1:
        x, padding = layers.ZeroPadding2D(conv.kernel_size // 2, name=f"{conv.name}_pad")(x), "valid"
    common: dict[str, Any] = {
        "strides": conv.strides,
        "padding": padding,
        "use_bias": style.use_bias or not conv.norm,
        "name": conv.name,
    }
    size, initializer = conv.kernel_size, CONV_INITIALIZER.clone()
    if routing_weights is not None:
        experts = routing_weights.shape[-1]
        common["kernel_initializer"] = initializer
        layer = (
            DepthwiseCondConv2D(size, experts, **common)
            if conv.filters is None
            else CondConv2D(conv.filters, size, experts, **common)
        )
        x = layer(x, routing_weights)
    elif conv.filters is None:
        x = layers.DepthwiseConv2D(size, depthwise_initializer=initializer, **common)(x)
    else:
        x = layers.Conv2D(conv.filters, size, kernel_initializer=initializer, **common)(x)
    if conv.norm:
        x = layers.BatchNormalization(epsilon=style.norm_epsilon, momentum=_MOMENTUM, name=f"{conv.name}_norm")(x)
    return activate(x, style.activation, name=conv.name) if conv.activate else x


def activate(x: Tensor, activation: str, *, name: str) -> Tensor:
    """Append the activation that follows what is called `name`."""
    return layers.Activation(activation, name=f"{name}_activation")(x)


def route(x: Tensor, num_experts: int, *, name: str) -> Tensor | None:
    """Append the router of a block: `sigmoid(dense(mean of x))`, `[B, num_experts]`; None if there are no experts.

    Args:
        x: the block's input `[B, H, W, C]`, or `[B, C]`, which is not averaged.
        num_experts: 0 for a block of ordinary layers.
        name: of the block; its router is called `<name>_routing`.
    """
    if not num_experts:
        return None
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name=f"{name}_routing_pool")(x)
    return layers.Dense(
        num_experts, activation="sigmoid", kernel_initializer=DENSE_INITIALIZER.clone(), name=f"{name}_routing"
    )(x)


def classify(x: Tensor, spec: NetworkSpec, routing: dict[str, Tensor]) -> Tensor:
    """Append mean, dropout and classifier.

    Args:
        x: the last map `[B, H, W, C]`.
        spec: how many classes there are, and whether the classifier has experts.
        routing: gets the classifier's routing weights, if it has some.

    Returns:
        The logits `[B, num_classes]`.
    """
    features = layers.GlobalAveragePooling2D(name="pool")(x)
    weights = route(features, spec.experts_of(CLASSIFIER), name=CLASSIFIER)
    x = layers.Dropout(spec.dropout_rate, name="dropout")(features) if spec.dropout_rate else features
    common: dict[str, Any] = {
        "use_bias": spec.classifier_bias,
        "kernel_initializer": DENSE_INITIALIZER.clone(),
        "name": "logits",
    }
    if weights is None:
        return layers.Dense(spec.num_classes, **common)(x)
    routing[CLASSIFIER] = weights
    return CondConvDense(spec.num_classes, weights.shape[-1], **common)(x, weights)


def network(spec: Any, inputs: Tensor, logits: Tensor, routing: dict[str, Tensor]) -> keras.Model:
    """The functional model that a family returns."""
    return keras.Model(inputs, {"logits": logits, "routing": routing}, name=spec.name.replace("-", "_"))


def pixels(spec: Any, input_size: int | None) -> Tensor:
    """The input: normalised pixels float32 `[B, size, size, 3]`."""
    size = input_size or spec.image_size
    return keras.Input((size, size, 3), name="pixels")
