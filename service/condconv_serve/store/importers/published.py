"""Weights named and laid out as a family's networks are published: Keras Applications, timm, torchvision, TF-Slim."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import Architecture
from condconv_serve.nn.published import Layout, Published
from condconv_serve.store.importers.assembly import Translation
from condconv_serve.store.importers.names import uncommon_prefix

BACKGROUND_CLASSES = 1001
"""ImageNet-1k and a background, which comes first."""
_LOGITS = "logits"
_POSITIONS = "/vars"
_NOT_WEIGHTS = ("num_batches_tracked",)
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    **{name: name for name in ("gamma", "beta", "moving_mean", "moving_variance")},
}
_KERNEL = {
    **dict.fromkeys(("weight", "weights", "depthwise_weights", "kernel", "depthwise_kernel"), "kernel"),
    **dict.fromkeys(("condconv_kernel", "depthwise_condconv_kernel"), "kernel"),
    **dict.fromkeys(("bias", "biases", "condconv_bias", "convolution_bn_offset"), "bias"),
}

Shapes = Mapping[str, Sequence[int]]


def choose_published(
    ways: Sequence[Published], architecture: Architecture, names: Iterable[str], *, source: str
) -> Published:
    """Tell whose names the tensors of a source bear.

    Args:
        ways: in which weights of the family are published.
        architecture: the network that they are for.
        names: of the tensors.
        source: its name, for the error message.

    Raises:
        ImportFailed: nobody's.
    """
    names = list(names)
    found = {way.naming: _known(way, architecture, names) for way in ways}
    best = max(ways, key=lambda way: found[way.naming])
    if not found[best.naming]:
        known = ", ".join(f"{way.whose} ({next(iter(way.layers(architecture)))})" for way in ways)
        raise ImportFailed(
            f"{source} names no layer as published weights of {architecture.name} do: {known}." + uncommon_prefix(names)
        )
    return best


def translate_published(
    tensors: Mapping[str, NDArray[Any]], published: Published, architecture: Architecture, expected: Shapes
) -> Translation:
    """Translate names and layouts.

    Args:
        tensors: by published name, in the source's order.
        published: whose names these are.
        architecture: the network that they are for.
        expected: shape of each of its variables by path, in order; the classifier's may be of another number of
            classes.
    """
    layers = {theirs: ours for theirs, ours in published.layers(architecture).items() if _is_layer(ours, expected)}
    layers |= _by_order([split_name(name, published.layout)[0] for name in tensors], layers)
    variables: dict[str, list[str]] = {}
    for path in expected:
        variables.setdefault(path.rpartition("/")[0], []).append(path)
    translation = Translation()
    for name, value in tensors.items():
        layer, leaf = split_name(name, published.layout)
        if leaf in _NOT_WEIGHTS:
            continue
        ours = layers.get(layer)
        place = None if ours is None else _path(ours, leaf, variables[ours])
        if place is None:
            translation.unknown.append(name)
            continue
        value = to_channels_last(value, place, expected.get(place), published.layout)
        if published.bgr and place == "stem/kernel" and value.ndim == 4:
            value = value[:, :, ::-1]
        translation.add(place, name, value)
    return translation


def without_background(translation: Translation) -> bool:
    """Drop the class 0 of classifiers that have one more than ImageNet-1k; returns whether there was one."""
    dropped = False
    for place, tensor in enumerate(translation.tensors):
        if tensor.path.startswith(f"{_LOGITS}/") and tensor.value.shape[-1:] == (BACKGROUND_CLASSES,):
            translation.tensors[place] = type(tensor)(tensor.path, tensor.source, tensor.value[..., 1:])
            dropped = True
    return dropped


def split_name(name: str, layout: Layout) -> tuple[str, str]:
    """Layer and variable of a published name; the variable may be a position in the layer."""
    if layout == "pytorch":
        layer, _, leaf = name.rpartition(".")
        return layer, leaf
    layer, _, leaf = name.removesuffix(":0").rpartition("/")
    return layer.removesuffix(_POSITIONS), leaf


def to_channels_last(value: NDArray[Any], path: str, shape: Sequence[int] | None, layout: Layout) -> NDArray[Any]:
    """A kernel in our layout, `[h, w, in, out]` or `[in, out]`, with an axis of experts in front if it has some.

    Args:
        value: as published; experts may be flattened, and dense kernels be 1x1 convolutions.
        path: of our variable.
        shape: that it should have; the number of classes may differ.
        layout: the published one.

    Returns:
        The value as it came, if it can't be that variable.
    """
    if shape is None or not path.endswith("/kernel") or len(shape) < 2:
        return value
    experts, own = (list(shape[:1]), list(shape[1:])) if len(shape) in (3, 5) else ([], list(shape))
    if experts and value.shape[:1] != tuple(experts):
        return value
    if path == f"{_LOGITS}/kernel":  # there may be any number of classes
        inputs = own[0] * (experts[0] if experts else 1)
        if value.size % inputs:
            return value
        own[1] = value.size // inputs
    if value.size != np.prod([*experts, *own]):
        return value
    if layout == "tensorflow":
        return value.reshape(*experts, *own)
    depthwise = path.endswith("_depthwise/kernel")
    axes = (1, 0) if len(own) == 2 else (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
    theirs = [own[axes.index(axis)] for axis in range(len(own))]
    whole = [*experts, *theirs]
    if list(value.shape) not in (whole, [*whole, 1, 1], [*experts, int(np.prod(own))]):
        return value
    shift = len(experts)
    return value.reshape(whole).transpose(*range(shift), *(axis + shift for axis in axes))


def _known(way: Published, architecture: Architecture, names: Sequence[str]) -> int:
    layers = way.layers(architecture)
    return sum(split_name(name, way.layout)[0] in layers for name in names)


def _is_layer(ours: str, expected: Shapes) -> bool:
    """Whether the network has a layer: names are given for routers of static blocks, too."""
    return any(f"{ours}/{leaf}" in expected for leaf in ("kernel", "gamma"))


def _by_order(given: Sequence[str], layers: Mapping[str, str]) -> dict[str, str]:
    """Layers whose names are unknown, but whose places aren't: all others are where they should be.

    Old files call the last layer otherwise.
    """
    source, wanted = list(dict.fromkeys(given)), list(layers.items())
    if len(source) != len(wanted):
        return {}
    odd = {theirs: ours for theirs, (known, ours) in zip(source, wanted, strict=True) if theirs != known}
    return odd if odd.keys().isdisjoint(layers) and 2 * len(odd) < len(source) else {}


def _path(ours: str, leaf: str, variables: Sequence[str]) -> str | None:
    if leaf.isdecimal():
        return variables[int(leaf)] if int(leaf) < len(variables) else None
    own = (_NORM if ours.endswith("_norm") else _KERNEL).get(leaf)
    return own and f"{ours}/{own}"
