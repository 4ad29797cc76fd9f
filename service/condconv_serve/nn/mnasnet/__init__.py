"""MnasNet-A1, static or CondConv: spec and names of published weights."""

from condconv_serve.nn.families import Family
from condconv_serve.nn.inverted_build import build_inverted
from condconv_serve.nn.mnasnet.names import PUBLISHED
from condconv_serve.nn.mnasnet.spec import ARCHITECTURES, MnasNetSpec

FAMILY = Family("mnasnet", ARCHITECTURES, build_inverted, published=PUBLISHED)

__all__ = ["FAMILY", "MnasNetSpec"]
