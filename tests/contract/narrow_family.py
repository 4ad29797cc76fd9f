"""EfficientNets of four narrow blocks, static and CondConv, with and without squeeze-and-excitation."""

from __future__ import annotations

from dataclasses import replace

from condconv_serve.nn import Family
from condconv_serve.nn.efficientnet import EfficientNetSpec
from condconv_serve.nn.inverted import InvertedStage
from condconv_serve.nn.inverted_build import build_inverted
from condconv_serve.nn.spec import last_blocks

FIRST_OF_STAGE = {0: 0, 1: 1, 2: 2}
_STAGES = (
    InvertedStage(1, 3, 1, 1, 8, squeezes=True),
    InvertedStage(1, 5, 2, 6, 8, squeezes=True),
    InvertedStage(2, 3, 1, 6, 16, squeezes=True),
)

STATIC = EfficientNetSpec(name="narrow", stages=_STAGES, stem=8, head=16, image_size=32, num_classes=7)
CONDCONV = replace(STATIC, name="narrow-condconv-4e", num_experts=4, condconv=last_blocks(2, of=4))
LITE = replace(
    STATIC, name="narrow-lite", activation="relu6", stages=tuple(replace(stage, squeezes=False) for stage in _STAGES)
)
LITE_CONDCONV = replace(LITE, name="narrow-lite-condconv-4e", num_experts=4, condconv=CONDCONV.condconv)
FAMILY = Family("narrow", (STATIC, CONDCONV, LITE, LITE_CONDCONV), build_inverted)
