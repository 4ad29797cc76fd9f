"""Which layers are fused into a convolution beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.layer_kinds import Role, has_kernel, has_role, is_pointwise


def scaled_convolutions(graph: ModelGraph) -> dict[str, str]:
    """Products `[B, H, W, C] * [B, 1, 1, C]` that only a pointwise convolution reads: its name by the product's.

    Only where the convolution's kernel is smaller than the activations, so that scaling it costs less.
    """
    found: dict[str, str] = {}
    for call in graph.calls:
        product, reader = call.operation, graph.sole_reader(call)
        multiplies = type(product) is keras.layers.Multiply and len(call.inputs) == 2
        if not multiplies or reader is None or not is_pointwise(reader.operation):
            continue
        x, scale = sorted(call.inputs, key=lambda tensor: tensor.shape[1] == 1)
        scales_channels = scale.shape[1:] == (1, 1, x.shape[-1]) and None not in x.shape[1:]
        once = graph.called_once(product) and graph.called_once(reader.operation)
        if scales_channels and once and reader.operation.filters < x.shape[1] * x.shape[2]:
            found[product.name] = reader.operation.name
    return found


def following_activations(graph: ModelGraph, norms: Mapping[str, Any]) -> dict[str, Any]:
    """The activation layer that alone reads a convolution or dense layer, or its folded norm, by that layer's name.

    Args:
        graph: of the model.
        norms: the norms that are folded away, by the names of their layers.
    """
    found: dict[str, Any] = {}
    for call in graph.calls:
        layer, reader = call.operation, graph.sole_reader(call)
        if reader is not None and reader.operation is norms.get(layer.name):
            reader = graph.sole_reader(reader)
        if reader is None or not has_role(reader.operation, Role.ACTIVATION) or not has_kernel(layer):
            continue
        linear = layer.activation is keras.activations.linear
        if linear and graph.called_once(layer) and graph.called_once(reader.operation):
            found[layer.name] = reader.operation
    return found
