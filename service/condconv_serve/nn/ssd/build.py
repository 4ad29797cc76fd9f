"""SSD detectors as one functional Keras model."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from condconv_serve.domain import BOXES, ROUTING, SCORES
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.building import Conv, Style, convolve, route
from condconv_serve.nn.families import build_network
from condconv_serve.nn.ssd.coding import ClassScores, DecodeBoxes, Variances
from condconv_serve.nn.ssd.spec import SSDSpec
from condconv_serve.nn.ssd.taps import tapped

Tensor = Any

BOX_ENCODINGS = "box_encodings"
"""The layer whose output `[B, anchors, 4]` is trained to be `encode` of the boxes."""
CLASS_LOGITS = "class_logits"
"""The layer whose output `[B, anchors, 1 + classes]` is trained to tell the classes, the background first."""
MAX_ANCHORS = 200_000
_ACTIVATION = "relu6"


def build_ssd(architecture: SSDSpec, *, input_size: int | None = None) -> keras.Model:
    """Build the network with fresh weights.

    Args:
        architecture: what to build.
        input_size: pixels per side of the input; the architecture's `image_size` if None. Weights don't depend on it.

    Returns:
        A model that takes normalised pixels float32 `[B, S, S, 3]` and returns `{"boxes": [B, anchors, 4], "scores":
        [B, anchors, num_classes], "routing": {block: [B, experts]}}`. The backbone's layers have the names that they
        have in its classifier.
    """
    size = input_size or architecture.image_size
    backbone = build_network(architecture.backbone.changed(num_classes=1), input_size=size)
    maps = tapped(backbone, architecture.taps)
    routing = _routing_within(backbone, maps)
    for number in range(len(architecture.extras)):
        maps.append(_extra(maps[-1], architecture, number, routing))
    _check_anchors(maps, architecture)
    encodings: list[Tensor] = []
    logits: list[Tensor] = []
    for number, (x, shapes) in enumerate(zip(maps, architecture.prior_boxes, strict=True)):
        counts = {"box": 4 * len(shapes), "class": (1 + architecture.num_classes) * len(shapes)}
        for kind, into in (("box", encodings), ("class", logits)):
            predicted = _predict(x, counts[kind], architecture, name=f"{kind}_predictor_{number}")
            per_anchor = counts[kind] // len(shapes)
            into.append(layers.Reshape((-1, per_anchor), name=f"{kind}_predictor_{number}_anchors")(predicted))
    encoded = _joined(encodings, name=BOX_ENCODINGS)
    classified = _joined(logits, name=CLASS_LOGITS)
    decode = DecodeBoxes(
        [tuple(x.shape[1:3]) for x in maps], architecture.prior_boxes, variances=architecture.variances, name=BOXES
    )
    outputs = {
        BOXES: decode(encoded),
        SCORES: ClassScores(architecture.scores, name=SCORES)(classified),
        ROUTING: routing,
    }
    return keras.Model(backbone.inputs[0], outputs, name=architecture.name.replace("-", "_"))


def priors_of(network: keras.Model) -> NDArray[np.float32]:
    """The prior boxes of a network from `build_ssd`: float32 `[anchors, 4]`, `ymin, xmin, ymax, xmax`."""
    priors: NDArray[np.float32] = network.get_layer(BOXES).priors
    return priors


def variances_of(network: keras.Model) -> Variances:
    """The factors of the box encodings of a network from `build_ssd`."""
    variances: Variances = network.get_layer(BOXES).variances
    return variances


def predictions_of(network: keras.Model) -> keras.Model:
    """The same network, but it returns what is trained: `{"box_encodings": ..., "class_logits": ..., "routing": ...}`.

    Args:
        network: from `build_ssd`; its layers are shared.
    """
    outputs = {name: network.get_layer(name).output for name in (BOX_ENCODINGS, CLASS_LOGITS)}
    return keras.Model(network.inputs[0], {**outputs, ROUTING: network.output[ROUTING]}, name=network.name)


def _check_anchors(maps: list[Tensor], spec: SSDSpec) -> None:
    """Refuse more boxes than can be worth it: a few bytes may ask for gigabytes of them."""
    counts = [math.prod(x.shape[1:3]) * len(shapes) for x, shapes in zip(maps, spec.prior_boxes, strict=True)]
    if sum(counts) > MAX_ANCHORS:
        raise ConfigurationError(
            f"{spec.name} would have {sum(counts)} prior boxes, and {MAX_ANCHORS} are allowed: take a smaller image, "
            "coarser taps, or fewer shapes."
        )


def _routing_within(backbone: keras.Model, maps: list[Tensor]) -> dict[str, Tensor]:
    """The routing weights of the blocks that lead to the maps."""
    within = {id(layer.output) for layer in keras.Model(backbone.inputs[0], maps).layers}
    return {block: weights for block, weights in backbone.output[ROUTING].items() if id(weights) in within}


def _extra(x: Tensor, spec: SSDSpec, number: int, routing: dict[str, Tensor]) -> Tensor:
    """Append an extra block, whose output is the next map."""
    name, args = f"extra_{number}", spec.extras[number]
    style = Style(activation=_ACTIVATION)
    weights = route(x, spec.num_experts if spec.condconv_extras else 0, name=name)
    if weights is not None:
        routing[name] = weights
    x = convolve(x, Conv(name=f"{name}_reduce", filters=args.reduce_filters, norm=spec.extra_norm), style, weights)
    strides = args.strides
    if spec.head == "ssdlite":
        depthwise = Conv(name=f"{name}_depthwise", filters=None, kernel_size=3, strides=strides, norm=spec.extra_norm)
        x = convolve(x, depthwise, style, weights)
        conv = Conv(name=f"{name}_pointwise", filters=args.out_filters, norm=spec.extra_norm)
    else:
        conv = Conv(name=f"{name}_conv", filters=args.out_filters, kernel_size=3, strides=strides, norm=spec.extra_norm)
    return convolve(x, conv, style, weights)


def _predict(x: Tensor, filters: int, spec: SSDSpec, *, name: str) -> Tensor:
    """Append a predictor: `[B, H, W, filters]`."""
    kernel_size = spec.head_kernel
    if spec.head == "ssdlite":
        depthwise = Conv(name=f"{name}_depthwise", filters=None, kernel_size=3)
        x, kernel_size = convolve(x, depthwise, Style(activation=_ACTIVATION)), 1
    initializer = keras.initializers.TruncatedNormal(stddev=0.03)
    return layers.Conv2D(filters, kernel_size, padding="same", kernel_initializer=initializer, name=name)(x)


def _joined(tensors: list[Tensor], *, name: str) -> Tensor:
    if len(tensors) == 1:
        return layers.Identity(name=name)(tensors[0])
    return layers.Concatenate(axis=1, name=name)(tensors)
