"""The networks: CondConv layers, MBConv blocks and EfficientNets on Keras 3, and what they cost.

Nothing here depends on the server, so the layers can be used and trained on their own.
"""

from service.nn.architectures import ARCHITECTURES, Architecture, BlockArgs, Stage, get_architecture
from service.nn.condconv import CondConv2D, DepthwiseCondConv2D, mix_experts
from service.nn.cost import Cost, cost
from service.nn.efficientnet import build_efficientnet
from service.nn.mbconv import mbconv
from service.nn.network_config import network_from_json, network_to_json, variable_shapes
from service.nn.outline import outline

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BlockArgs",
    "CondConv2D",
    "Cost",
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
