"""Read an HDF5 file in a process of its own first: a damaged one can end the process that reads it, or never let go.

This file is that process's program, too. It reads from standard input, and imports nothing of the package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any

TRIAL_SECONDS = 30.0
"""How long reading a small file may take on a busy machine; usually half a second."""
SLOW_DISK = 10e6
"""Bytes that a slow disk reads in a second."""


class HDF5Damaged(ValueError):
    """The library that reads HDF5 files comes to no end with this one."""


def try_out(file: IO[bytes], *, max_bytes: int) -> None:
    """Read all that a file holds, elsewhere. What can only be found wrong is left to whoever reads it here.

    Args:
        file: open; its position is another one afterwards.
        max_bytes: the most that is read of one array; who reads it here will refuse larger ones.

    Raises:
        HDF5Damaged: it must not be read here.
    """
    command = [sys.executable, "-P", __file__, str(max_bytes)]
    seconds = TRIAL_SECONDS + file.seek(0, os.SEEK_END) / SLOW_DISK
    file.seek(0)
    try:
        ended = subprocess.run(command, stdin=file, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise HDF5Damaged(f"reading it had not ended after {seconds:.0f} s, so it is damaged") from None
    if ended.returncode < 0:
        raise HDF5Damaged(f"reading it ended a process by signal {-ended.returncode}, so it is damaged")


def _read(group: Any, max_bytes: int) -> None:
    import h5py

    _attributes(group)
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            continue
        item = group[key]
        if isinstance(item, h5py.Group):
            _read(item, max_bytes)
        elif item.external is None and not item.is_virtual:
            _attributes(item)
            if item.nbytes <= max_bytes:
                item[()]


def _attributes(item: Any) -> None:
    for name in item.attrs:
        item.attrs[name]


if __name__ == "__main__":
    with suppress(Exception):  # an error that Python can tell is told where the file is read in earnest
        import h5py

        with os.fdopen(0, "rb") as given, h5py.File(given, "r") as opened:
            _read(opened, int(sys.argv[1]))
