"""ResNet-50, static or CondConv: spec, builder, and names of published weights."""

from condconv_serve.nn.families import Family
from condconv_serve.nn.resnet.build import build_resnet
from condconv_serve.nn.resnet.names import PUBLISHED
from condconv_serve.nn.resnet.spec import ARCHITECTURES, ResNetSpec

FAMILY = Family("resnet", ARCHITECTURES, build_resnet, published=PUBLISHED)

__all__ = ["FAMILY", "ResNetSpec", "build_resnet"]
