"""Folds batch norms into the convolutions and dense layers before them, so that inference needn't compute them.

For CondConv every expert's output channels are scaled; the mixture is linear in the experts, so the fold is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.layer_kinds import Role, has_kernel, has_role, kind_of


@dataclass(frozen=True, slots=True)
class FoldedWeights:
    """A convolution's or dense layer's weights for inference, float32.

    `kernel` has the layer's layout with the norm's scale in its output channels; `bias` `[channels]` is the layer's
    plain bias and the norm's shift; `expert_bias` `[num_experts, channels]` is a CondConv layer's mixed bias.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    expert_bias: NDArray[np.float32] | None = None


def foldable_norms(graph: ModelGraph) -> dict[str, Any]:
    """Every batch norm that alone reads a convolution's or dense layer's output, by that layer's name.

    Layers called more than once keep their norms, and so do those whose output is read by anything besides the norm (a
    layer, an operation, a model inside the model).
    """
    found: dict[str, Any] = {}
    for call in graph.calls:
        layer, reader = call.operation, graph.sole_reader(call)
        if reader is None or not has_kernel(layer) or not has_role(reader.operation, Role.NORM):
            continue
        norm: Any = reader.operation
        if (
            norm.axis in (-1, len(call.outputs[0].shape) - 1)
            and layer.activation is keras.activations.linear
            and graph.called_once(layer)
            and graph.called_once(norm)
        ):
            found[layer.name] = norm
    return found


def norm_factors(norm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a batch norm multiplies each channel with, and what it adds then, both `[channels]`."""
    scale = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = -np.asarray(norm.moving_mean, np.float64) * scale
    if norm.center:
        shift = shift + np.asarray(norm.beta, np.float64)
    return scale, shift


def fold(layer: Any, norm: Any | None) -> FoldedWeights:
    """A layer's weights with the norm that follows it, if one is folded.

    Args:
        layer: one for which `has_kernel` is true.
        norm: from `foldable_norms`.
    """
    kind = kind_of(layer)
    depthwise, experts = kind is not None and kind.depthwise, kind is not None and kind.experts
    kernel = np.asarray(layer.kernel, np.float64)
    channels = kernel.shape[-1] * (kernel.shape[-2] if depthwise else 1)
    bias = np.zeros(channels) if layer.bias is None else np.asarray(layer.bias, np.float64)
    scale, shift = (np.ones(channels), np.zeros(channels)) if norm is None else norm_factors(norm)
    kernel = kernel * (scale.reshape(kernel.shape[-2:]) if depthwise else scale)
    expert_bias = None
    if experts:
        expert_bias = None if layer.bias is None else (bias * scale).astype(np.float32)
        bias = np.zeros(channels)
    return FoldedWeights(kernel.astype(np.float32), (bias * scale + shift).astype(np.float32), expert_bias)
