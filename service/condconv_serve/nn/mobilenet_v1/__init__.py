"""MobileNetV1, static or CondConv: spec, builder, and names of published weights."""

from condconv_serve.nn.families import Family
from condconv_serve.nn.mobilenet_v1.build import build_mobilenet_v1
from condconv_serve.nn.mobilenet_v1.names import PUBLISHED
from condconv_serve.nn.mobilenet_v1.spec import ARCHITECTURES, MobileNetV1Spec

FAMILY = Family("mobilenet_v1", ARCHITECTURES, build_mobilenet_v1, published=PUBLISHED)

__all__ = ["FAMILY", "MobileNetV1Spec", "build_mobilenet_v1"]
