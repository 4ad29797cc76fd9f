"""Folders of images: what is in them, and what is left out and why."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from condconv_serve.domain import readable
from condconv_serve.imaging.formats import IMAGE_SUFFIXES

MAX_NAMED = 3
"""How many files of one kind are named."""
_MAX_SUFFIXES = 5


class Why(StrEnum):
    """Why something in a folder is left out, as people read it: one, and several."""

    OTHER = "file that has no image's suffix|files that have no image's suffix"
    HIDDEN = "hidden file|hidden files"
    HIDDEN_FOLDER = "hidden folder|hidden folders"
    LINKED_FOLDER = "link to a folder|links to folders"
    DEAD_LINK = "link that leads nowhere|links that lead nowhere"
    SPECIAL = "pipe, socket or device|pipes, sockets or devices"
    UNREADABLE = "folder that can't be read|folders that can't be read"

    def of(self, count: int) -> str:
        """The number with its noun."""
        one, many = self.value.split("|")
        return f"{count} {one if count == 1 else many}"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's images, in the order of their paths, and what else is in it, by reason; paths within the folder."""

    images: tuple[Path, ...]
    left_out: dict[Why, tuple[Path, ...]]

    def describe(self) -> str:
        """What was left out: how many of which kind, and the first of them; empty if nothing."""
        return "; ".join(self._kind(why, paths) for why, paths in self.left_out.items())

    @staticmethod
    def _kind(why: Why, paths: tuple[Path, ...]) -> str:
        suffixes = ""
        if why is Why.OTHER:
            counted = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common()
            named = [f"{suffix} {count}" if len(counted) > 1 else suffix for suffix, count in counted[:_MAX_SUFFIXES]]
            suffixes = f" ({', '.join(named)}{', ...' if len(counted) > _MAX_SUFFIXES else ''})"
        more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
        return f"{why.of(len(paths))}{suffixes}: {', '.join(map(readable, paths[:MAX_NAMED]))}{more}"


def scan(root: Path) -> Folder:
    """Find all images below a folder, by their suffixes.

    Links to files count as files. Links to folders are not followed, since they may lead in a circle.
    """
    images: list[Path] = []
    left_out: dict[Why, list[Path]] = {}

    def leave_out(why: Why, path: Path) -> None:
        left_out.setdefault(why, []).append(path.relative_to(root))

    def fail(error: OSError) -> None:
        leave_out(Why.UNREADABLE, Path(error.filename))

    for place, folders, files in os.walk(root, onerror=fail):
        below = []
        for name in folders:
            path = Path(place, name)
            if name.startswith("."):
                leave_out(Why.HIDDEN_FOLDER, path)
            elif path.is_symlink():
                leave_out(Why.LINKED_FOLDER, path)
            else:
                below.append(name)
        folders[:] = below
        for name in files:
            path = Path(place, name)
            if (why := _why_not(path)) is None:
                images.append(path)
            else:
                leave_out(why, path)
    return Folder(tuple(sorted(images)), {why: tuple(sorted(left_out[why])) for why in Why if why in left_out})


def _why_not(path: Path) -> Why | None:
    if path.name.startswith("."):
        return Why.HIDDEN
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return Why.OTHER
    if path.is_file():
        return None
    return Why.DEAD_LINK if path.is_symlink() and not path.exists() else Why.SPECIAL
