"""Arrays in files that are mapped, not loaded."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def create_mapped(file: Path, *, dtype: DTypeLike, shape: Sequence[int]) -> np.memmap[Any, np.dtype[Any]]:
    """Make a file for an array, in place of the one that is there, and map it.

    Its space on the disk is taken now: a process that writes to a mapped page where none is left is killed.

    Raises:
        OSError: the disk is full; the file is not there.
    """
    try:
        store = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=tuple(shape))
        if sys.platform == "linux":
            _take_space(file)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return store


def _take_space(file: Path) -> None:
    with file.open("r+b") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems can't tell
                raise OSError(error.errno, error.strerror, str(file)) from error
