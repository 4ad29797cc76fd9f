"""A model's reference routing profile as a file."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from condconv_serve.domain import RoutingProfile
from condconv_serve.errors import BundleError
from condconv_serve.store.tensors import parse_tensors

_DTYPES = {"images": np.int64, "histogram": np.int64, "classes": np.int64, "class_images": np.int64}


def serialise_profile(profile: RoutingProfile) -> bytes:
    """The content of a profile's file, safetensors."""
    content: bytes = save({f.name: np.asarray(getattr(profile, f.name), _dtype(f.name)) for f in fields(profile)})
    return content


def profile_name(content: bytes) -> str:
    """The name of a profile's file. It depends on the content, so two profiles never share a name."""
    return f"routing_profile.{hashlib.sha256(content).hexdigest()[:16]}.safetensors"


def parse_profile(content: bytes) -> RoutingProfile:
    """Read the content of a profile's file.

    Raises:
        BundleError: it is damaged, or its parts don't fit together.
    """
    try:
        tensors = parse_tensors(content)
    except ValueError as error:
        raise BundleError(f"can't be read ({error})") from error
    if problem := _problem(tensors):
        raise BundleError(problem)
    images = int(tensors.pop("images"))
    return RoutingProfile(images=images, **tensors)


def _dtype(name: str) -> type[np.int64] | type[np.float32]:
    return _DTYPES.get(name, np.float32)


def _problem(tensors: dict[str, NDArray[Any]]) -> str | None:
    """What is wrong with a profile's tensors."""
    names = {f.name for f in fields(RoutingProfile)}
    if different := names ^ tensors.keys():
        return f"{', '.join(sorted(different))} missing or not part of it"
    for name, value in tensors.items():
        if value.dtype != _dtype(name):
            return f"{name} is {value.dtype} instead of {np.dtype(_dtype(name))}"
        if not np.isfinite(value).all() or (value < 0).any():
            return f"{name} holds numbers that are negative or not finite"
    if tensors["mean"].ndim != 2 or tensors["histogram"].ndim != 3:
        return "mean must be [blocks, experts] and histogram [blocks, experts, bins]"
    blocks, experts = tensors["mean"].shape
    number = len(np.atleast_1d(tensors["classes"]))
    shapes = {
        "images": (),
        "deviation": (blocks, experts),
        "histogram": (blocks, experts, tensors["histogram"].shape[2]),
        "load": (blocks, experts),
        "entropy": (blocks,),
        "typical_distance": (blocks + 1,),
        "unusual_above": (blocks + 1,),
        "classes": (number,),
        "class_images": (number,),
        "class_mean": (number, blocks, experts),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            return f"{name} has shape {tensors[name].shape} instead of {shape}"
    if (tensors["histogram"].sum(axis=2) != tensors["images"]).any():
        return "the histograms don't add up to the number of images"
    if (np.diff(tensors["classes"]) <= 0).any():
        return "classes must be in ascending order"
    return None
