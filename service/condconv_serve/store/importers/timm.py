"""Weights named as in timm's state dicts of EfficientNet, EfficientNet-Lite and CondConv (PyTorch layouts)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.assembly import Translation
from condconv_serve.store.importers.names import uncommon_prefix

_BLOCK = re.compile(r"^blocks\.(?P<stage>\d+)\.(?P<index>\d+)\.(?P<layer>[\w.]+)\.(?P<leaf>\w+)$")
_NORM_LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_LEAVES = {"weight": "kernel", "bias": "bias"}
_OUTSIDE = {"conv_stem": "stem", "bn1": "stem_norm", "conv_head": "head", "bn2": "head_norm", "classifier": "logits"}
_EXPANDING = {
    "conv_pw": "expand",
    "bn1": "expand_norm",
    "conv_dw": "depthwise",
    "bn2": "depthwise_norm",
    "conv_pwl": "project",
    "bn3": "project_norm",
}
_NOT_EXPANDING = {"conv_dw": "depthwise", "bn1": "depthwise_norm", "conv_pw": "project", "bn2": "project_norm"}
_EITHER = {"se.conv_reduce": "se_reduce", "se.conv_expand": "se_expand", "routing_fn": "routing"}


def translate_timm(tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]) -> Translation:
    """Translate a timm state dict.

    Args:
        tensors: by timm's names, in PyTorch's layouts (`[out, in, h, w]`; experts `[num_experts, out*in*h*w]`).
        expected: shapes of the network's variables by path; flattened experts can't be transposed without.

    Raises:
        ImportFailed: the names are not those of an EfficientNet.
    """
    blocks = _number_blocks(tensors)
    if not blocks:
        raise ImportFailed(
            "The state dict has no tensor called blocks.0.0..., so it is no timm EfficientNet."
            + uncommon_prefix(tensors)
        )
    translation = Translation()
    for name, value in tensors.items():
        if name.endswith(".num_batches_tracked"):
            continue
        path = _path(name, blocks)
        if path is None:
            translation.unknown.append(name)
        else:
            translation.add(path, name, _to_channels_last(value, path, expected.get(path)))
    return translation


def _number_blocks(tensors: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, bool]]:
    """Our name of each (stage, index), and whether that block expands."""
    layers: dict[tuple[int, int], set[str]] = defaultdict(set)
    for name in tensors:
        if match := _BLOCK.match(name):
            layers[int(match["stage"]), int(match["index"])].add(match["layer"])
    return {
        (str(stage), str(index)): (f"block_{number}", "conv_pwl" in layers[stage, index])
        for number, (stage, index) in enumerate(sorted(layers))
    }


def _path(name: str, blocks: Mapping[tuple[str, str], tuple[str, bool]]) -> str | None:
    if match := _BLOCK.match(name):
        block, expands = blocks[match["stage"], match["index"]]
        layer = ({**_EITHER, **(_EXPANDING if expands else _NOT_EXPANDING)}).get(match["layer"])
        prefix, leaf = f"{block}_", match["leaf"]
    else:
        outer, _, leaf = name.rpartition(".")
        layer, prefix = _OUTSIDE.get(outer), ""
    if layer is None:
        return None
    leaf_name = (_NORM_LEAVES if layer.endswith("norm") else _LEAVES).get(leaf)
    return leaf_name and f"{prefix}{layer}/{leaf_name}"


def _to_channels_last(value: NDArray[Any], path: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
    depthwise = path.endswith("_depthwise/kernel")
    if value.ndim == 4:  # [out, in, h, w]; a depthwise kernel is [channels, 1, h, w]
        return value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    if shape is not None and len(shape) == 5 and value.shape == (shape[0], np.prod(shape[1:])):
        experts, height, width, inputs, outputs = shape
        if depthwise:
            return value.reshape(experts, inputs, outputs, height, width).transpose(0, 3, 4, 1, 2)
        return value.reshape(experts, outputs, inputs, height, width).transpose(0, 3, 4, 2, 1)
    if value.ndim == 2 and (shape is None or len(shape) == 2):  # dense [out, in]
        return value.transpose()
    return value
