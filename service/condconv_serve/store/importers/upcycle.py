"""Turns a static network into a CondConv network with the same answers: each expert starts as a copy of its kernel.

Routing starts with a zero kernel, so at first it is the same for every photo, and with the bias `-ln(N - 1)`, where the
sigmoid is `1 / N`. The `N` weights sum to one, so the mixture of the copies is the static kernel. (Komatsuzaki et al.,
"Sparse Upcycling", ICLR 2023, do the same to transformers.)

Equal experts get equal gradients and stay equal. Noise makes them differ. The noise of all experts of a kernel sums to
zero, so the mixture stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import Architecture, weight_shapes

MAX_NOISE = 1.0
_ROUTER = "_routing/"


def static_twin(architecture: Any) -> Any:
    """The same network with ordinary layers.

    Raises:
        ImportFailed: it has fewer than two experts, so there is nothing to copy into.
    """
    if architecture.num_experts < 2:
        raise ImportFailed(
            f"{architecture.name} has {architecture.num_experts or 'no'} experts; upcycling needs an architecture with "
            "CondConv blocks, and two experts at least."
        )
    return architecture.static()


def upcycle(
    static: Mapping[str, NDArray[Any]], architecture: Architecture, *, noise: float = 0.0, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Spread the weights of a static network over experts.

    Args:
        static: the twin's weights by variable path.
        architecture: the network to make, with two experts at least.
        noise: standard deviation of the experts' differences, as a share of that of the kernel itself; 0 for copies.
        seed: of the noise.

    Returns:
        The weights of `architecture` by variable path, in the types that they came in.

    Raises:
        ImportFailed: `noise` is not between 0 and 1.
    """
    if not 0 <= noise <= MAX_NOISE:
        raise ImportFailed(f"The noise must be from 0 to {MAX_NOISE:g}, not {noise:g}.")
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {}
    for path, shape in weight_shapes(architecture).items():
        if _ROUTER in path and path not in static:
            experts = shape[-1]
            neutral = -math.log(experts - 1) if path.endswith("/bias") else 0
            weights[path] = np.full(shape, neutral, np.float32)
        elif static[path].shape == shape:
            weights[path] = static[path]
        else:
            weights[path] = _copies(static[path], shape[0], noise if path.endswith("/kernel") else 0, rng)
    return weights


def _copies(kernel: NDArray[Any], experts: int, noise: float, rng: np.random.Generator) -> NDArray[Any]:
    copies = np.repeat(kernel[None], experts, axis=0)
    if not noise:
        return copies
    differences = rng.standard_normal(copies.shape, np.float32)
    differences -= differences.mean(axis=0)
    differences *= noise * kernel.std(dtype=np.float64) / math.sqrt(1 - 1 / experts)  # what the subtraction took
    return (copies + differences).astype(kernel.dtype)
