"""Folds batch norms into the convolutions before them, so that inference needn't compute them.

For CondConv every expert's output channels are scaled; the mixture is linear in the experts, so the fold is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from condconv_serve.runtime.layer_kinds import LayerKind, Role, has_role, kind_of
from condconv_serve.runtime.model_graph import ModelGraph


@dataclass(frozen=True, slots=True)
class FoldedConvolution:
    """A convolution's weights for inference, float32.

    `kernel` has the layer's layout with the norm's scale in its output channels; `bias` `[channels]` is the layer's
    plain bias and the norm's shift; `expert_bias` `[num_experts, channels]` is a CondConv layer's mixed bias.
    """

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    expert_bias: NDArray[np.float32] | None = None


def fold_batch_norms(graph: ModelGraph) -> tuple[dict[str, FoldedConvolution], frozenset[str]]:
    """Fold every batch norm that alone reads a convolution's output.

    Layers called more than once keep their norms, and so do convolutions whose output is read by anything besides the
    norm (a layer, an operation, a model inside the model).

    Returns:
        The weights of every convolution by layer name, and the names of the batch norms that are left with nothing to
        do.
    """
    weights: dict[str, FoldedConvolution] = {}
    folded: set[str] = set()
    for call in graph.calls:
        layer, kind = call.operation, kind_of(call.operation)
        if kind is None or kind.role is not Role.CONVOLUTION:
            continue
        reader = graph.sole_reader(call)
        norm: Any = None if reader is None else reader.operation
        foldable = (
            has_role(norm, Role.NORM)
            and norm.axis in (-1, 3)
            and layer.activation is keras.activations.linear
            and graph.called_once(layer)
            and graph.called_once(norm)
        )
        weights[layer.name] = _fold(layer, kind, norm if foldable else None)
        if foldable:
            folded.add(norm.name)
    return weights, frozenset(folded)


def _fold(layer: Any, kind: LayerKind, norm: Any | None) -> FoldedConvolution:
    kernel = np.asarray(layer.kernel, np.float64)
    channels = kernel.shape[-1] * (kernel.shape[-2] if kind.depthwise else 1)
    bias = np.zeros(channels) if layer.bias is None else np.asarray(layer.bias, np.float64)
    scale, shift = np.ones(channels), np.zeros(channels)
    if norm is not None:
        scale = 1 / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
        if norm.scale:
            scale = scale * np.asarray(norm.gamma, np.float64)
        shift = -np.asarray(norm.moving_mean, np.float64) * scale
        if norm.center:
            shift = shift + np.asarray(norm.beta, np.float64)
    kernel = kernel * (scale.reshape(kernel.shape[-2:]) if kind.depthwise else scale)
    expert_bias = None
    if kind.experts:
        expert_bias = None if layer.bias is None else (bias * scale).astype(np.float32)
        bias = np.zeros(channels)
    return FoldedConvolution(kernel.astype(np.float32), (bias * scale + shift).astype(np.float32), expert_bias)
