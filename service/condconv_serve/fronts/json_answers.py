"""Tensors as JSON, with no more digits than needed, and so that nobody else waits long."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic_core
from numpy.typing import NDArray

ELEMENTS_AT_ONCE = 20_000
"""Answers with more elements are written on another thread, with a pause after so many of them."""
_DIGITS = 9
"""Significant digits that tell any two float32 apart."""
_PAUSE = 1e-4
"""Seconds. Without them NumPy takes Python's lock back each time before another thread has woken up."""


def values_of(tensor: NDArray[Any]) -> Any:
    """Nested lists of text or numbers. Numbers have no more digits than float32 has: half as many bytes to send."""
    if tensor.dtype == np.object_:
        return tensor.tolist()
    exact = tensor.astype(np.float64)
    scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(np.where(exact == 0, 1, exact)))))
    return (np.round(exact * scale) / scale).tolist()


def list_json(tensor: NDArray[Any]) -> bytes:
    """The JSON of `values_of`, written piece by piece. The tensor has one axis at least.

    If it has more than `ELEMENTS_AT_ONCE`, call this on another thread than the event loop's.
    """
    if tensor.size <= ELEMENTS_AT_ONCE:
        return pydantic_core.to_json(values_of(tensor))
    rows = ELEMENTS_AT_ONCE * len(tensor) // tensor.size
    if not rows:
        return b"[" + b",".join(map(list_json, tensor)) + b"]"
    parts = (tensor[start : start + rows] for start in range(0, len(tensor), rows))
    return b"[" + b",".join(_written(part)[1:-1] for part in parts) + b"]"


def _written(part: NDArray[Any]) -> bytes:
    time.sleep(_PAUSE)
    return list_json(part)


def object_json(values: Mapping[str, Any]) -> bytes:
    """The JSON of an object; values that are bytes are JSON already."""
    parts: list[bytes] = []
    for name, value in values.items():
        parts += [b",", pydantic_core.to_json(name), b":"]
        parts.append(value if isinstance(value, bytes) else pydantic_core.to_json(value))
    return b"".join([b"{", *parts[1:], b"}"])  # at once, as they may be large
