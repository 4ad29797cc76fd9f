"""Names of published MobileNetV1 weights."""

from __future__ import annotations

from condconv_serve.nn.mobilenet_v1.spec import MobileNetV1Spec
from condconv_serve.nn.published import keras_published, slim_published, timm_published

_STAGES = (1, 2, 2, 6, 2)
"""How many blocks each of timm's stages has."""


def keras_layers(spec: MobileNetV1Spec) -> dict[str, str]:
    """Published layer: ours. With experts, block i has the router `routing_i`, and the classifier `routing_preds`."""
    found = {"conv1": "stem", "conv1_bn": "stem_norm"}
    for number, block in enumerate(spec.blocks(), 1):
        found[f"routing_{number}"] = f"{block.name}_routing"
        for theirs, ours in (("dw", "depthwise"), ("pw", "pointwise")):
            found[f"conv_{theirs}_{number}"] = f"{block.name}_{ours}"
            found[f"conv_{theirs}_{number}_bn"] = f"{block.name}_{ours}_norm"
    return found | {"routing_preds": "classifier_routing", "conv_preds": "logits"}


def slim_layers(spec: MobileNetV1Spec) -> dict[str, str]:
    """Published layer: ours."""
    convolutions = {"Conv2d_0": "stem"}
    for number, block in enumerate(spec.blocks(), 1):
        for kind in ("depthwise", "pointwise"):
            convolutions[f"Conv2d_{number}_{kind}"] = f"{block.name}_{kind}"
    found: dict[str, str] = {}
    for theirs, ours in convolutions.items():
        found |= {f"MobilenetV1/{theirs}": ours, f"MobilenetV1/{theirs}/BatchNorm": f"{ours}_norm"}
    return found | {"MobilenetV1/Logits/Conv2d_1c_1x1": "logits"}


def timm_layers(spec: MobileNetV1Spec) -> dict[str, str]:
    """Published layer: ours."""
    found = {"conv_stem": "stem", "bn1": "stem_norm"}
    places = [f"blocks.{stage}.{index}" for stage, count in enumerate(_STAGES) for index in range(count)]
    for place, block in zip(places, spec.blocks(), strict=True):
        found |= {
            f"{place}.routing_fn": f"{block.name}_routing",
            f"{place}.conv_dw": f"{block.name}_depthwise",
            f"{place}.bn1": f"{block.name}_depthwise_norm",
            f"{place}.conv_pw": f"{block.name}_pointwise",
            f"{place}.bn2": f"{block.name}_pointwise_norm",
        }
    return found | {"classifier": "logits"}


PUBLISHED = (
    keras_published(keras_layers, conventions={"padding": "same", "norm_epsilon": 1e-3}),
    slim_published(slim_layers),
    timm_published(timm_layers, conventions={"padding": "symmetric", "norm_epsilon": 1e-5}),
)
"""Every way in which weights of MobileNetV1 are published."""
