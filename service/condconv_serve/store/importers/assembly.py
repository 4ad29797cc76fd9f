"""The rule of all importers: every tensor of the network is given exactly once, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from condconv_serve.errors import ImportFailed
from condconv_serve.store.bundle import is_floating

MAX_NAMED = 8
"""How many names of one kind an error message lists."""


@dataclass(frozen=True, slots=True)
class Translated:
    """One imported tensor, with our network's name and in our layout, except for a reshape."""

    path: str
    source: str
    value: NDArray[Any]


@dataclass(slots=True)
class Translation:
    """What an importer translated. `unknown` are the names that it could not place."""

    tensors: list[Translated] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, path: str, source: str, value: NDArray[Any]) -> None:
        """Place one tensor."""
        self.tensors.append(Translated(path, source, value))


def assemble(
    translation: Translation, expected: Mapping[str, Sequence[int]], *, architecture: str
) -> dict[str, NDArray[np.floating[Any]]]:
    """Match translated tensors with the network's variables.

    Args:
        translation: what the importer found.
        expected: shape of each variable of the network by its path.
        architecture: the network's name, for the error message.

    Returns:
        Values by path, in the shapes expected, float16 where they came so and float32 otherwise. Flattened kernels are
        reshaped where the count of numbers fits.

    Raises:
        ImportFailed: names every kind of misfit: missing, left over, given twice, misshaped, no floating-point numbers,
            not finite.
    """
    by_path: dict[str, Translated] = {}
    twice: list[str] = []
    leftover = list(translation.unknown)
    misshaped: list[str] = []
    not_floating: list[str] = []
    not_finite: list[str] = []
    for tensor in translation.tensors:
        if tensor.path in by_path:
            twice.append(f"{tensor.source} and {by_path[tensor.path].source} (both {tensor.path})")
        elif tensor.path not in expected:
            leftover.append(tensor.source)
        else:
            by_path[tensor.path] = tensor

    values: dict[str, NDArray[np.floating[Any]]] = {}
    for path, tensor in by_path.items():
        shape = tuple(expected[path])
        if not _fits(tensor.value.shape, shape):
            misshaped.append(f"{tensor.source} is {list(tensor.value.shape)}, but {path} is {list(shape)}")
            continue
        if not is_floating(tensor.value):
            not_floating.append(f"{tensor.source} is {tensor.value.dtype.name}")
            continue
        dtype: DTypeLike = np.float16 if tensor.value.dtype == np.float16 else np.float32
        with np.errstate(over="ignore"):  # infinity is refused below
            value: NDArray[np.floating[Any]] = tensor.value.astype(dtype).reshape(shape)
        if not np.isfinite(value).all():
            not_finite.append(tensor.source)
        values[path] = value

    problems = [
        *_listed("missing", sorted(set(expected) - set(by_path))),
        *_listed("left over", sorted(leftover)),
        *_listed("given twice", twice),
        *_listed("misshaped", misshaped),
        *_listed("no floating-point numbers", not_floating),
        *_listed("not finite", not_finite),
    ]
    if problems:
        raise ImportFailed(f"The weights don't fit {architecture}: {'; '.join(problems)}.")
    return values


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Equal shapes, or flattened experts `[num_experts, n]`: then only the first axis and the count can be checked."""
    flattened = len(shape) == 2 and len(expected) == 5 and shape[0] == expected[0]
    return shape == expected or (flattened and int(np.prod(shape)) == int(np.prod(expected)))


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{kind}: {', '.join(names[:MAX_NAMED])}{more}"]
