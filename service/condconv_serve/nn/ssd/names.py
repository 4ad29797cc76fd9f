"""Names of published SSD weights: the TensorFlow Object Detection API's, and those of face-api's face detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condconv_serve.nn.families import family_of
from condconv_serve.nn.mobilenet_v1 import MobileNetV1Spec
from condconv_serve.nn.mobilenet_v2 import MobileNetV2Spec
from condconv_serve.nn.published import SYMMETRIC, Published
from condconv_serve.nn.ssd.priors import prior_shapes
from condconv_serve.nn.ssd.spec import SSDSpec

_EXTRACTOR = "FeatureExtractor"


def object_detection_layers(spec: SSDSpec) -> dict[str, str]:
    """Published layer: ours; none for backbones that have no names there."""
    last = {MobileNetV1Spec: "MobilenetV1/Conv2d_13_pointwise", MobileNetV2Spec: "MobilenetV2/layer_19"}
    place = last.get(type(spec.backbone))
    if place is None:
        return {}
    slim = next(way for way in family_of(spec.backbone).published if way.naming == "slim")
    found = {f"{_EXTRACTOR}/{theirs}": ours for theirs, ours in slim.layers(spec.backbone).items() if ours != "logits"}
    for number, args in enumerate(spec.extras):
        convolutions = {f"1_Conv2d_{number + 2}_1x1_{args.reduce_filters}": "reduce"}
        second = f"2_Conv2d_{number + 2}_3x3_s{args.strides}_{args.out_filters}"
        if spec.head == "ssdlite":
            convolutions |= {f"{second}_depthwise": "depthwise", second: "pointwise"}
        else:
            convolutions[second] = "conv"
        for theirs, ours in convolutions.items():
            found |= _with_norm(f"{_EXTRACTOR}/{place}_{theirs}", f"extra_{number}_{ours}")
    for number in range(spec.maps):
        for theirs, ours in (("BoxEncodingPredictor", "box"), ("ClassPredictor", "class")):
            name = f"BoxPredictor_{number}/{theirs}"
            if spec.head == "ssdlite":
                found |= _with_norm(f"{name}_depthwise", f"{ours}_predictor_{number}_depthwise")
            found[name] = f"{ours}_predictor_{number}"
    return found


def face_api_layers(spec: SSDSpec) -> dict[str, str]:
    """Published layer: ours; none for other backbones than MobileNetV1."""
    if not isinstance(spec.backbone, MobileNetV1Spec):
        return {}
    found = {"MobilenetV1/Conv2d_0_pointwise": "stem"}
    for number, block in enumerate(spec.backbone.blocks(), 1):
        found |= _with_norm(f"MobilenetV1/Conv2d_{number}_depthwise", f"{block.name}_depthwise")
        found[f"MobilenetV1/Conv2d_{number}_pointwise"] = f"{block.name}_pointwise"
    for number in range(len(spec.extras)):
        found[f"Prediction/Conv2d_{2 * number}_pointwise"] = f"extra_{number}_reduce"
        found[f"Prediction/Conv2d_{2 * number + 1}_pointwise"] = f"extra_{number}_conv"
    for number in range(spec.maps):
        place = f"Prediction/BoxPredictor_{number}"
        found |= {
            f"{place}/BoxEncodingPredictor": f"box_predictor_{number}",
            f"{place}/ClassPredictor": f"class_predictor_{number}",
        }
    return found


def _with_norm(theirs: str, ours: str) -> dict[str, str]:
    return {theirs: ours, f"{theirs}/BatchNorm": f"{ours}_norm"}


_COMMON: Mapping[str, Any] = {"padding": "same", "norm_epsilon": 1e-3, "scores": "sigmoid"}

PUBLISHED = (
    Published(
        naming="object_detection",
        whose="the TensorFlow Object Detection API's",
        layout="tensorflow",
        layers=object_detection_layers,
        transform="stretch",
        interpolation="asymmetric",
        pixels=SYMMETRIC,
        conventions={**_COMMON, "prior_boxes": prior_shapes(6, between_last=True)},
    ),
    Published(
        naming="face_api",
        whose="face-api's",
        layout="tensorflow",
        layers=face_api_layers,
        transform="letterbox",
        interpolation="asymmetric",
        pixels=SYMMETRIC,
        conventions={
            **_COMMON,
            "image_size": 512,
            "pointwise_norm": False,
            "extra_norm": False,
            "prior_boxes": prior_shapes(6),
        },
        labels=("face", "background"),
    ),
)
"""Every way in which weights of SSD detectors are published."""
