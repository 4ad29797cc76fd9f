"""EfficientNet and EfficientNet-Lite, static or CondConv: spec and builder."""

from condconv_serve.nn.efficientnet.build import build_efficientnet
from condconv_serve.nn.efficientnet.spec import ARCHITECTURES, EfficientNetSpec, Stage
from condconv_serve.nn.families import Family

FAMILY = Family("efficientnet", ARCHITECTURES, build_efficientnet)

__all__ = ["FAMILY", "EfficientNetSpec", "Stage", "build_efficientnet"]
