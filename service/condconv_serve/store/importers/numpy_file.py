"""Arrays with names in NumPy's `.npz`. A pickle in such a file is refused, as everywhere."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.errors import ImportFailed


def read_npz(file: Path, *, max_bytes: int) -> dict[str, NDArray[Any]]:
    """Read all arrays of a `.npz` file by name.

    Args:
        file: what NumPy has written.
        max_bytes: the most that all arrays may have together, unpacked.

    Raises:
        ImportFailed: the file is damaged, too large, or holds something else than arrays of plain numbers.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist()]
            size = sum(info.file_size for info in archive.infolist())
        if size > max_bytes:
            raise ImportFailed(f"{file.name} holds {size} bytes of weights; {max_bytes} are allowed.")
        if len(set(names)) < len(names):
            raise ImportFailed(f"{file.name} has two arrays of the same name.")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ImportFailed(f"{file.name} can't be read as arrays of NumPy: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ImportFailed(f"{file.name} can't be read as arrays of NumPy: {error}") from error
