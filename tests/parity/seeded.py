"""Weights that follow from a variable's name: the reference outputs were computed with them.

Each value is normal noise from a generator seeded with the checksum of `salt:name`, scaled by the variable's kind.
Batch-norm averages can't be drawn so: they were measured, to keep activations in a natural range, and are stored.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

AVERAGED = "/ExponentialMovingAverage"
DATA = Path(__file__).parent / "data"


def read_tiny() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The narrow network of the project's own: its description, and stored statistics and expected outputs."""
    with np.load(DATA / "tiny.npz") as stored:
        return json.loads((DATA / "tiny.json").read_text()), dict(stored)


def waves() -> np.ndarray:
    """Made pixels `[4, 96, 96, 3]` in 47.5..207.5, with something going on at every place."""
    i, y, x, c = np.ogrid[:4, :96, :96, :3]
    return (127.5 + 80 * np.sin(0.05 * x * (c + 1) + i) * np.cos(0.07 * y + 0.5 * c)).astype(np.float32)


def official_tensors(
    spec: Mapping[str, Any], statistics: Mapping[str, np.ndarray], *, raw: bool = True
) -> dict[str, np.ndarray]:
    """A TF1 checkpoint's tensors: every variable averaged and, different from that, raw."""
    tensors = {}
    for name, shape in spec["variables"].items():
        if raw:
            tensors[name] = _official(name, shape, spec["salt"])
        average = statistics.get(name)
        tensors[name + AVERAGED] = _official(name + AVERAGED, shape, spec["salt"]) if average is None else average
    return tensors


def timm_tensors(spec: Mapping[str, Any], statistics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A timm state dict's tensors."""
    return {
        name: np.zeros((), np.int64)
        if name.endswith("num_batches_tracked")
        else statistics[name]
        if "running_" in name
        else _timm(name, shape, spec["salt"])
        for name, shape in spec["state_dict"].items()
    }


def _noise(name: str, shape: list[int], salt: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(f"{salt}:{name}".encode())).standard_normal(shape)


def _official(name: str, shape: list[int], salt: str) -> np.ndarray:
    match name.removesuffix(AVERAGED).split("/")[-1]:
        case "gamma":
            mean, spread = 1.0, 0.1
        case "beta" | "moving_mean" | "moving_variance" | "bias":
            mean, spread = 0.0, 0.1
        case "depthwise_kernel":
            mean, spread = 0.0, 1.4 / np.sqrt(np.prod(shape[:2]))
        case "depthwise_condconv_kernel":
            mean, spread = 0.0, 0.35
        case "condconv_kernel":
            mean, spread = 0.0, np.sqrt(2 / np.sqrt(shape[1]))
        case _:
            mean, spread = 0.0, np.sqrt(2 / np.prod(shape[:-1]))
    return (mean + spread * _noise(name, shape, salt)).astype(np.float32)


def _timm(name: str, shape: list[int], salt: str) -> np.ndarray:
    layer, leaf = name.rsplit(".", 1)
    flattened_experts = len(shape) == 2 and not layer.endswith(("routing_fn", "classifier"))
    mean = 0.0
    if leaf == "bias":
        spread = 0.1
    elif len(shape) == 1:
        mean, spread = 1.0, 0.1
    elif flattened_experts:
        spread = np.sqrt(2 / np.sqrt(shape[1])) if shape[1] > 30_000 else 0.35
    else:
        spread = np.sqrt(2 / np.prod(shape[1:]))
    return (mean + spread * _noise(name, shape, salt)).astype(np.float32)
