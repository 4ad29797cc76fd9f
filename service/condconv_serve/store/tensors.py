"""Files of tensors, safetensors: a full disk and a file that can't be read are errors of the usual kinds."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save_file

_OS_ERROR = re.compile(r"\(os error (?P<now>\d+)\)|Os \{ code: (?P<before>\d+)")
"""How the library names the system's error: now, and in the oldest versions that are allowed."""


def save_tensors(tensors: Mapping[str, NDArray[Any]], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors, whatever their layout in memory.

    Raises:
        OSError: the disk is full or not writable.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    try:
        save_file(arrays, file, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found["now"] or found["before"])
        raise OSError(number, os.strerror(number), str(file)) from error


def load_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Read a file of tensors.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file, or is damaged, or holds numbers that NumPy doesn't know.
    """
    with _told():
        tensors: dict[str, NDArray[Any]] = load_file(file)
    return tensors


def parse_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the content of a file of tensors.

    Raises:
        ValueError: as `load_tensors`.
    """
    with _told():
        tensors: dict[str, NDArray[Any]] = load(content)
    return tensors


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError) as error:  # it looks for types such as float8 in NumPy, or in a table
        raise ValueError(f"its numbers are of a type that can't be read here: {error}") from error
    except (SafetensorError, TypeError) as error:
        raise ValueError(str(error)) from error
