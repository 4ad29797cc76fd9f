"""Tells whether a bundle's files have changed, without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change (ns) and inode of each file of a bundle. It changes when the files do."""


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a bundle's directory; empty if it can't be read."""
    found = []
    try:
        for file in sorted(path.iterdir()):
            stat = file.stat()
            found.append((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    except OSError:
        return ()
    return tuple(found)
