"""EfficientNets of four narrow blocks, static and CondConv, with and without squeeze-and-excitation."""

from __future__ import annotations

from dataclasses import replace

from condconv_serve.nn import Family, build_efficientnet
from condconv_serve.nn.efficientnet import EfficientNetSpec, Stage

FIRST_OF_STAGE = {0: 0, 1: 1, 2: 2}


def _stages(num_experts: int) -> tuple[Stage, ...]:
    return (Stage(1, 3, 1, 1, 8, 8), Stage(1, 5, 2, 6, 8, 8), Stage(2, 3, 1, 6, 8, 16, num_experts))


STATIC = EfficientNetSpec(
    name="narrow", stages=_stages(0), stem_filters=8, head_filters=16, image_size=32, num_classes=7
)
CONDCONV = replace(STATIC, name="narrow-condconv-4e", stages=_stages(4))
LITE = replace(STATIC, name="narrow-lite", activation="relu6", se_ratio=0.0)
LITE_CONDCONV = replace(LITE, name="narrow-lite-condconv-4e", stages=_stages(4))
FAMILY = Family("narrow", (STATIC, CONDCONV, LITE, LITE_CONDCONV), build_efficientnet)
