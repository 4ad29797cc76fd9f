"""What the native kernels' steps mean, in NumPy and float64: plain loops, to prove the kernels by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.runtime.kernels.abi import Activation
from condconv_serve.runtime.kernels.program import Step

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def hard_sigmoid(x: Array) -> Array:
    return np.clip(x + 3, 0, 6) / 6


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    Activation.LINEAR: lambda x: x,
    Activation.RELU: lambda x: np.maximum(x, 0),
    Activation.RELU6: lambda x: np.clip(x, 0, 6),
    Activation.SWISH: lambda x: x * sigmoid(x),
    Activation.HARD_SWISH: lambda x: x * hard_sigmoid(x),
    Activation.SIGMOID: sigmoid,
    Activation.HARD_SIGMOID: hard_sigmoid,
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a convolution reads: pads are zeros above and left of the input; what lies beyond it is zero, too."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    out: tuple[int, int]


def geometry(
    size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], *, same: bool
) -> Geometry | None:
    """As TensorFlow's SAME or VALID has it; None if the kernel is larger than the image."""
    pads, out = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        extent = (k - 1) * d + 1
        if same:
            out.append(-(-n // s))
            pads.append(max((out[-1] - 1) * s + extent - n, 0) // 2)
        elif extent > n:
            return None
        else:
            out.append((n - extent) // s + 1)
            pads.append(0)
    return Geometry(strides=strides, dilations=dilations, pads=(pads[0], pads[1]), out=(out[0], out[1]))


def convolve(x: Array, kernels: Array, at: Geometry) -> Array:
    """`[B, h, w, C]` with one kernel per example: `[B, kh, kw, C, filters]`, or `[B, kh, kw, C]` if depthwise."""
    (height, width), (top, left) = at.out, at.pads
    kernel_height, kernel_width = kernels.shape[1:3]
    rows = (height - 1) * at.strides[0] + (kernel_height - 1) * at.dilations[0] + 1
    columns = (width - 1) * at.strides[1] + (kernel_width - 1) * at.dilations[1] + 1
    padded = np.zeros((len(x), max(rows, top + x.shape[1]), max(columns, left + x.shape[2]), x.shape[3]))
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    y = np.zeros((len(x), height, width, kernels.shape[-1]))
    for i in range(kernel_height):
        for j in range(kernel_width):
            down, right = i * at.dilations[0], j * at.dilations[1]
            view = padded[
                :,
                down : down + (height - 1) * at.strides[0] + 1 : at.strides[0],
                right : right + (width - 1) * at.strides[1] + 1 : at.strides[1],
            ]
            kernel = kernels[:, i, j]
            y += view * kernel[:, None, None] if kernels.ndim == 4 else np.einsum("bhwc,bcn->bhwn", view, kernel)
    return y


def mix(experts: Array, routing: Array | None, rows: int) -> Array:
    """One kernel per example; the first expert for all, if there is no routing."""
    if routing is None:
        return np.repeat(experts[:1].astype(np.float64), rows, axis=0)
    return np.einsum("be,e...->b...", routing.astype(np.float64), experts.astype(np.float64))


def to_bfloat16(x: Array) -> Array:
    """Rounded to bfloat16, to the nearest even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def max_pool(x: Array, step: Step) -> Array:
    """The largest numbers of the windows of one row `[H, W, C]`."""
    result = np.empty((step.out_height, step.out_width, x.shape[2]))
    for i, j in np.ndindex(step.out_height, step.out_width):
        top, left = i * step.window_stride_height - step.pad_top, j * step.window_stride_width - step.pad_left
        rows, columns = slice(max(top, 0), top + step.window_height), slice(max(left, 0), left + step.window_width)
        result[i, j] = x[rows, columns].max((0, 1))
    return result
