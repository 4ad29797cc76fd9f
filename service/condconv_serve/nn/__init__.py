"""The networks: CondConv layers, MBConv blocks and EfficientNets on Keras 3, and what they cost.

Nothing here depends on the server, so the layers can be used and trained on their own.
"""

from condconv_serve.nn.architectures import ARCHITECTURES, Architecture, BlockArgs, Stage, get_architecture
from condconv_serve.nn.condconv import CondConv2D, DepthwiseCondConv2D, mix_experts
from condconv_serve.nn.cost import cost
from condconv_serve.nn.efficientnet import build_efficientnet
from condconv_serve.nn.mbconv import mbconv
from condconv_serve.nn.network_config import network_from_json, network_to_json, variable_shapes
from condconv_serve.nn.outline import outline

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BlockArgs",
    "CondConv2D",
    "DepthwiseCondConv2D",
    "Stage",
    "build_efficientnet",
    "cost",
    "get_architecture",
    "mbconv",
    "mix_experts",
    "network_from_json",
    "network_to_json",
    "outline",
    "variable_shapes",
]
