"""Small networks for the engines' tests."""

import re
from typing import Any

import keras
from keras import layers

from condconv_serve.nn import ARCHITECTURES, CondConv2D, DepthwiseCondConv2D, build_network, family_of, get_architecture

SMALLEST = {"width_coefficient": 0.25, "depth_coefficient": 0.3}
"""An EfficientNet of eight blocks, the last four with experts: whatever a family has, but nothing twice."""


def small_efficientnet(name: str, *, image_size: int, **overrides: Any) -> Any:
    """A narrow, shallow EfficientNet: as few layers as it can have."""
    return build_network(get_architecture(name, **{**SMALLEST, **overrides}), input_size=image_size)


_DISTINCT = tuple(
    name
    for name in ARCHITECTURES
    if not re.fullmatch(r"efficientnet-b[1-7]|efficientnet-condconv-b0-8e.*|.*-32e|.*ssd512-.*|ssdlite", name)
)
DISTINCT = tuple(name for name in _DISTINCT if family_of(ARCHITECTURES[name]).task == "classification")
"""Classifiers that differ in more than their size and the number of their experts."""
DETECTORS = tuple(name for name in _DISTINCT if name not in DISTINCT and name.startswith("condconv-"))
"""The same of detectors; their static twins have nothing that these haven't."""


def small_network(name: str, *, image_size: int, **overrides: Any) -> Any:
    """A narrow, shallow network of any family.

    With two experts random kernels mix to what random kernels are, and with more they grow from layer to layer.
    """
    smallest: dict[str, Any] = dict(SMALLEST)
    if ARCHITECTURES[name].num_experts:
        smallest["num_experts"] = 2
    if "mobilenet-v1" in name:  # which has one depth
        del smallest["depth_coefficient"]
    return build_network(get_architecture(name, **{**smallest, **overrides}), input_size=image_size)


def two_blocks(*, image_size: int, classes: int = 7, experts: int = 3) -> Any:
    """A network of two CondConv blocks, one depthwise and one pointwise, as a served one: quick to compile.

    The second one starts with squeeze and excitation.
    """
    pixels = keras.Input((image_size, image_size, 3))
    x = layers.Conv2D(8, 3, strides=4, padding="same", activation="relu6")(pixels)
    routing = {}
    for block, convolve in {
        "block_0": DepthwiseCondConv2D(3, experts, strides=2, padding="same", use_bias=False),
        "block_1": CondConv2D(12, 1, experts, use_bias=False),
    }.items():
        router = layers.Dense(experts, activation="sigmoid", name=f"{block}_routing")
        routing[block] = router(layers.GlobalAveragePooling2D()(x))
        if block == "block_1":
            scales = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
            x = layers.Multiply()([x, scales])
        x = layers.Activation("swish")(layers.BatchNormalization()(convolve(x, routing[block])))
    logits = layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(pixels, {"logits": logits, "routing": routing})
