"""Finds the feature maps of a backbone that a detector predicts from, whatever family it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn.ssd.parameters import STRIDES

Tensor = Any


def tapped(backbone: keras.Model, taps: Sequence[str]) -> list[Tensor]:
    """The maps that taps name.

    Args:
        backbone: functional; takes `[B, S, S, 3]`.
        taps: keys of `STRIDES`, or names of layers.

    Returns:
        A symbolic tensor `[B, H, W, C]` for each tap.

    Raises:
        ConfigurationError: there is no such map, or they don't go from fine to coarse.
    """
    maps = _maps(backbone)
    found = [_at_stride(maps, STRIDES[tap], backbone) if tap in STRIDES else _of_layer(maps, tap) for tap in taps]
    heights = [tensor.shape[1] for tensor in found]
    if heights != sorted(heights, reverse=True) or len({id(tensor) for tensor in found}) < len(found):
        raise ConfigurationError(f"taps must name maps from fine to coarse, each once; {', '.join(taps)} don't.")
    return found


def _maps(backbone: keras.Model) -> dict[str, Tensor]:
    """All maps by the layer that computes them, in the order of computing."""
    found: dict[str, Tensor] = {}
    for layer in backbone.layers:
        output = None if isinstance(layer, keras.Model) else layer.output
        if isinstance(output, keras.KerasTensor) and len(output.shape) == 4:
            found[layer.name] = output
    return found


def _at_stride(maps: dict[str, Tensor], stride: int, backbone: keras.Model) -> Tensor:
    """The last of the tensors with the most channels: wide ones tell more than those that a block narrows to."""
    size = -(-backbone.inputs[0].shape[1] // stride)
    found = [tensor for tensor in maps.values() if tuple(tensor.shape[1:3]) == (size, size)]
    if not found:
        raise ConfigurationError(f"The backbone has no map at stride {stride}; name layers in taps.")
    most = max(tensor.shape[-1] for tensor in found)
    return [tensor for tensor in found if tensor.shape[-1] == most][-1]


def _of_layer(maps: dict[str, Tensor], name: str) -> Tensor:
    if name not in maps:
        known = [layer for layer in maps if layer.endswith(("_activation", "_add"))] or list(maps)
        raise ConfigurationError(
            f"The backbone has no map called {name!r}; take one of {', '.join(STRIDES)}, or a layer such as "
            f"{', '.join(known[-3:])}."
        )
    return maps[name]
