"""EfficientNet and EfficientNet-Lite, static or CondConv: spec, builder, and their block."""

from condconv_serve.nn.efficientnet.build import build_efficientnet
from condconv_serve.nn.efficientnet.mbconv import mbconv
from condconv_serve.nn.efficientnet.spec import ARCHITECTURES, BlockArgs, EfficientNetSpec, Stage
from condconv_serve.nn.families import Family

FAMILY = Family("efficientnet", ARCHITECTURES, build_efficientnet)

__all__ = ["FAMILY", "BlockArgs", "EfficientNetSpec", "Stage", "build_efficientnet", "mbconv"]
