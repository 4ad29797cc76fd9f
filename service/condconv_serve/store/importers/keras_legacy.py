"""Weights in the HDF5 layout of Keras 2, in which Keras Applications publishes its weights.

The root, or the group `model_weights`, lists its layers in the attribute `layer_names`, and each layer's group its
arrays in `weight_names`. Older writers stored these names as bytes, newer ones as text.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed

_MODEL = "model_weights"
_LAYERS = "layer_names"


def is_legacy(store: Any) -> bool:
    """Whether an open HDF5 file is of Keras 2's layout."""
    return _LAYERS in store.attrs or _MODEL in store


def read_legacy(store: Any, name: str, max_bytes: int) -> dict[str, NDArray[Any]]:
    """Read all tensors of an open file.

    Args:
        store: the file.
        name: of the file, for error messages.
        max_bytes: the most that all tensors may have together, unpacked.

    Returns:
        Tensors by layer and variable, such as `conv1/kernel`, in the file's order.

    Raises:
        ImportFailed: something is missing, too large, or lies in another file.
    """
    root = store.get(_MODEL, store)
    tensors: dict[str, NDArray[Any]] = {}
    total = 0
    for layer in _names(root, _LAYERS):
        group = _member(root, layer, name)
        for variable in _names(group, "weight_names"):
            array = _member(group, variable, name)
            if not isinstance(array, h5py.Dataset) or array.external is not None or array.is_virtual:
                raise ImportFailed(f"{name} holds {layer}/{variable}, which is no plain array.")
            total += array.size * array.dtype.itemsize
            if total > max_bytes:
                raise ImportFailed(f"{name} holds more than {max_bytes} bytes of weights; that is the most allowed.")
            key = f"{layer}/{variable.rpartition('/')[2].removesuffix(':0')}"
            if key in tensors:
                raise ImportFailed(f"{name} holds {key} twice.")
            tensors[key] = np.asarray(array)
    if not tensors:
        raise ImportFailed(f"{name} names no layer with weights.")
    return tensors


def _names(group: Any, attribute: str) -> list[str]:
    """Names in an attribute; long lists are split over `layer_names0`, `layer_names1` and so on."""
    if attribute in group.attrs:
        found = [group.attrs[attribute]]
    else:
        found = []
        while f"{attribute}{len(found)}" in group.attrs:
            found.append(group.attrs[f"{attribute}{len(found)}"])
    return [name.decode() if isinstance(name, bytes) else str(name) for part in found for name in part]


def _member(group: Any, path: str, name: str) -> Any:
    """What lies at a path below a group. Links are refused: they would read other files of this machine."""
    found = group
    for part in path.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise ImportFailed(f"{name} names {path}, but holds no such thing, or only a link to another place.")
        found = found[part]
    return found
