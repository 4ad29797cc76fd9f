"""EfficientNet and EfficientNet-Lite, static or CondConv: spec."""

from condconv_serve.nn.efficientnet.spec import ARCHITECTURES, EfficientNetSpec
from condconv_serve.nn.families import Family
from condconv_serve.nn.inverted_build import build_inverted

FAMILY = Family("efficientnet", ARCHITECTURES, build_inverted)

__all__ = ["FAMILY", "EfficientNetSpec"]
