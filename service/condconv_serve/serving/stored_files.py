"""Tells whether a version that serves from memory would still load: its files may break behind it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeAlias

from condconv_serve.errors import BundleError
from condconv_serve.store import bundle_name, open_bundle

Marks: TypeAlias = Mapping[str, tuple[int, int, int, int]]
"""Size, times of the last change of content and of anything (ns) and inode of each file that can be opened."""


def marks(path: Path) -> Marks:
    """The marks of a bundle's files; those that can't be opened are left out."""
    found = {}
    try:
        names = os.listdir(path)
    except OSError:
        return {}
    for name in names:
        try:
            # Permissions show only if one opens it. Opening a pipe would wait for somebody to write.
            file = os.open(path / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            continue
        try:
            stat = os.fstat(file)
        finally:
            os.close(file)
        found[name] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return found


class StoredFiles:
    """Looks at the files of served versions. They are read only if their marks have changed. For one thread."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._looked: dict[Path, tuple[Marks, str | None]] = {}

    def trust(self, path: Path, found: Marks) -> None:
        """Note that a bundle with these marks has been loaded."""
        self._looked[path] = (found, None)

    def problem(self, path: Path, names: Collection[str]) -> str | None:
        """Why a bundle could not be loaded now; None if it could.

        Args:
            path: its directory.
            names: of the files that it must have.
        """
        if not path.is_dir():
            return f"{bundle_name(path)} is gone from the store."
        now = {name: mark for name, mark in marks(path).items() if name in names}
        if missing := sorted(set(names) - set(now)):
            return f"{bundle_name(path)}: {missing[0]} is missing or can't be read."
        before = self._looked.get(path)
        if before is None or any(before[0].get(name) != mark for name, mark in now.items()):
            before = self._looked[path] = (now, _why_broken(path))
        return before[1]

    def forget(self, path: Path) -> None:
        """Forget a version that isn't served any more."""
        self._looked.pop(path, None)


def _why_broken(path: Path) -> str | None:
    try:
        open_bundle(path)
    except BundleError as error:
        return str(error)
    except OSError:  # a file has gone while it was looked at
        return f"{bundle_name(path)} can't be read."
    return None
