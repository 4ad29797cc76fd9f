"""MobileNetV2, static or CondConv: spec and names of published weights."""

from condconv_serve.nn.families import Family
from condconv_serve.nn.inverted_build import build_inverted
from condconv_serve.nn.mobilenet_v2.names import PUBLISHED
from condconv_serve.nn.mobilenet_v2.spec import ARCHITECTURES, MobileNetV2Spec

FAMILY = Family("mobilenet_v2", ARCHITECTURES, build_inverted, published=PUBLISHED)

__all__ = ["FAMILY", "MobileNetV2Spec"]
