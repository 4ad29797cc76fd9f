"""Names of published MobileNetV2 weights."""

from __future__ import annotations

from condconv_serve.nn.inverted import timm_layers
from condconv_serve.nn.mobilenet_v2.spec import MobileNetV2Spec
from condconv_serve.nn.published import keras_published, pytorch_published, slim_published, timm_published

_TENSORFLOW = {"padding": "same", "norm_epsilon": 1e-3}
_PYTORCH = {"padding": "symmetric", "norm_epsilon": 1e-5}


def _convolutions(spec: MobileNetV2Spec) -> list[tuple[int, list[str]]]:
    """The convolutions of each block, by the block's number."""
    return [
        (number, [*([] if block.expand_ratio == 1 else ["expand"]), "depthwise", "project"])
        for number, block in enumerate(spec.blocks())
    ]


def keras_layers(spec: MobileNetV2Spec) -> dict[str, str]:
    """Published layer: ours."""
    found = {"Conv1": "stem", "bn_Conv1": "stem_norm"}
    for number, convolutions in _convolutions(spec):
        place = f"block_{number}" if number else "expanded_conv"
        for kind in convolutions:
            found |= {f"{place}_{kind}": f"block_{number}_{kind}", f"{place}_{kind}_BN": f"block_{number}_{kind}_norm"}
    return found | {"Conv_1": "head", "Conv_1_bn": "head_norm", "predictions": "logits"}


def slim_layers(spec: MobileNetV2Spec) -> dict[str, str]:
    """Published layer: ours."""
    places = {"Conv": "stem"}
    for number, convolutions in _convolutions(spec):
        place = f"expanded_conv_{number}" if number else "expanded_conv"
        places |= {f"{place}/{kind}": f"block_{number}_{kind}" for kind in convolutions}
    found: dict[str, str] = {}
    for theirs, ours in (places | {"Conv_1": "head"}).items():
        found |= {f"MobilenetV2/{theirs}": ours, f"MobilenetV2/{theirs}/BatchNorm": f"{ours}_norm"}
    return found | {"MobilenetV2/Logits/Conv2d_1c_1x1": "logits"}


def torchvision_layers(spec: MobileNetV2Spec) -> dict[str, str]:
    """Published layer: ours."""
    found = {"features.0.0": "stem", "features.0.1": "stem_norm"}
    for number, convolutions in _convolutions(spec):
        place = f"features.{number + 1}.conv"
        for position, kind in enumerate(convolutions):
            last = position == len(convolutions) - 1  # it isn't activated, so it isn't in a sequence with its norm
            conv, norm = (f"{position}", f"{position + 1}") if last else (f"{position}.0", f"{position}.1")
            found |= {
                f"{place}.{conv}": f"block_{number}_{kind}",
                f"{place}.{norm}": f"block_{number}_{kind}_norm",
            }
    head = f"features.{len(spec.blocks()) + 1}"
    return found | {f"{head}.0": "head", f"{head}.1": "head_norm", "classifier.1": "logits"}


def condconv_pytorch_layers(spec: MobileNetV2Spec) -> dict[str, str]:
    """Published layer: ours, in github.com/d-li14/condconv.pytorch."""
    found = {"features.0.0": "stem", "features.0.1": "stem_norm"}
    names = {"expand": ("pw", "bn_pw"), "depthwise": ("dw", "bn_dw"), "project": ("pw_linear", "bn_pw_linear")}
    for number, convolutions in _convolutions(spec):
        place, ours = f"features.{number + 1}", f"block_{number}"
        for kind in convolutions:
            conv, norm = names[kind]
            found |= {f"{place}.{conv}": f"{ours}_{kind}", f"{place}.{norm}": f"{ours}_{kind}_norm"}
        found[f"{place}.route.fc"] = f"{ours}_routing"
    return found | {
        "conv_route.fc": "head_routing",
        "conv.0": "head",
        "conv.1": "head_norm",
        "classifier_route.fc": "classifier_routing",
        "classifier": "logits",
    }


PUBLISHED = (
    keras_published(keras_layers, conventions=_TENSORFLOW),
    slim_published(slim_layers),
    timm_published(timm_layers, conventions=_PYTORCH),
    pytorch_published("torchvision", "torchvision's", torchvision_layers, conventions=_PYTORCH),
    pytorch_published("condconv.pytorch", "condconv.pytorch's", condconv_pytorch_layers, conventions=_PYTORCH),
)
"""Every way in which weights of MobileNetV2 are published."""
