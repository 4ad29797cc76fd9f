"""Names of published ResNet weights."""

from __future__ import annotations

from condconv_serve.nn.published import keras_published, pytorch_published
from condconv_serve.nn.resnet.spec import ResNetSpec

# Keras takes blue first, and subtracts the mean only.
_CAFFE = ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
_KERAS = {"padding": "symmetric", "norm_epsilon": 1.001e-5, "stride_first": True, "use_bias": True}
_PYTORCH = {"padding": "symmetric", "norm_epsilon": 1e-5, "stride_first": False, "use_bias": False}


def _places(spec: ResNetSpec) -> list[tuple[int, int]]:
    """Stage and place in it of each block, both from 0."""
    return [(stage, index) for stage, count in enumerate(spec.stage_sizes()) for index in range(count)]


def keras_layers(spec: ResNetSpec) -> dict[str, str]:
    """Published layer: ours."""
    found = {"conv1_conv": "stem", "conv1_bn": "stem_norm"}
    for (stage, index), block in zip(_places(spec), spec.blocks(), strict=True):
        place = f"conv{stage + 2}_block{index + 1}"
        for number, ours in (("1", "reduce"), ("2", "conv")):
            found |= {
                f"{place}_{number}_conv": f"{block.name}_{ours}",
                f"{place}_{number}_bn": f"{block.name}_{ours}_norm",
            }
        ends = (*((("0", "shortcut"),) if block.projects else ()), ("3", "expand"))
        found |= {f"{place}_{number}_conv": f"{block.name}_{ours}" for number, ours in ends}
        found |= {f"{place}_{number}_bn": f"{block.name}_{ours}_norm" for number, ours in ends}
    return found | {"predictions": "logits"}


def pytorch_layers(spec: ResNetSpec) -> dict[str, str]:
    """Published layer: ours. timm and torchvision have the same names."""
    found = {"conv1": "stem", "bn1": "stem_norm"}
    for (stage, index), block in zip(_places(spec), spec.blocks(), strict=True):
        place = f"layer{stage + 1}.{index}"
        found[f"{place}.routing_fn"] = f"{block.name}_routing"
        for number, ours in enumerate(("reduce", "conv", "expand"), 1):
            found |= {
                f"{place}.conv{number}": f"{block.name}_{ours}",
                f"{place}.bn{number}": f"{block.name}_{ours}_norm",
            }
        if block.projects:
            found |= {
                f"{place}.downsample.0": f"{block.name}_shortcut",
                f"{place}.downsample.1": f"{block.name}_shortcut_norm",
            }
    return found | {"fc_routing": "classifier_routing", "fc": "logits"}


PUBLISHED = (
    keras_published(keras_layers, conventions=_KERAS, pixels=_CAFFE, bgr=True),
    pytorch_published("torchvision", "timm's and torchvision's", pytorch_layers, conventions=_PYTORCH),
)
"""Every way in which weights of ResNet-50 are published."""
