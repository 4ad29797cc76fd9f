"""Networks: CondConv layers, families of networks in Keras 3, and their cost.

Nothing here depends on the server, so the layers can be used and trained on their own.
"""

from condconv_serve.nn import efficientnet, mnasnet, mobilenet_v1, mobilenet_v2, resnet, ssd
from condconv_serve.nn.condconv import CondConv2D, DepthwiseCondConv2D
from condconv_serve.nn.condconv_dense import CondConvDense, mixed_product
from condconv_serve.nn.cost import cost
from condconv_serve.nn.experts import mix_experts
from condconv_serve.nn.families import (
    ARCHITECTURES,
    Architecture,
    Family,
    build_network,
    family_of,
    get_architecture,
    register,
    weight_shapes,
)
from condconv_serve.nn.network_config import network_from_json, network_to_json, variable_shapes
from condconv_serve.nn.outline import give_values, outline

for family in (efficientnet, mobilenet_v1, mobilenet_v2, mnasnet, resnet, ssd):
    register(family.FAMILY)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "CondConv2D",
    "CondConvDense",
    "DepthwiseCondConv2D",
    "Family",
    "build_network",
    "cost",
    "family_of",
    "get_architecture",
    "give_values",
    "mix_experts",
    "mixed_product",
    "network_from_json",
    "network_to_json",
    "outline",
    "register",
    "variable_shapes",
    "weight_shapes",
]
