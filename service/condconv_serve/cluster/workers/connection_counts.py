"""How many connections each front has, so that one limit holds for all of them."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

_BYTES = 8


class ConnectionCounts:
    """A number for each front, in a file that all of them map. Each writes its own alone, so nobody needs a lock."""

    def __init__(self, directory: Path, *, fronts: int) -> None:
        """Use the file in a directory; whoever comes first makes it.

        Raises:
            OSError: it can't be used.
        """
        file = os.open(directory / "connections", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if sys.platform == "linux":
                os.posix_fallocate(file, 0, fronts * _BYTES)  # who writes where no memory is left would be killed
            else:
                os.ftruncate(file, fronts * _BYTES)
            self._counts = memoryview(mmap.mmap(file, fronts * _BYTES)).cast("q")
        finally:
            os.close(file)

    def tell(self, front: int, own: int) -> int:
        """Say how many connections a front has, and hear how many the others have; fronts are numbered from 1."""
        self._counts[front - 1] = own
        return sum(self._counts) - own
