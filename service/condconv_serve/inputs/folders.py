"""Folders of images: what is in them, and what is left out and why."""

from __future__ import annotations

import os
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from condconv_serve.domain import readable
from condconv_serve.imaging.formats import IMAGE_SUFFIXES

MAX_NAMED = 3
"""How many files of one kind are named."""
_MAX_SUFFIXES, _MAX_COUNTED_SUFFIXES = 5, 1000


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


class LeftOut:
    """What is left out of folders, by reason: how much, and the first few of each kind; small however much it is."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._counts: Counter[Why] = Counter()
        self._suffixes: Counter[str] = Counter()
        self._first: dict[Why, list[Path]] = {}

    def add(self, why: Why, path: Path) -> None:
        """Count a path."""
        self._counts[why] += 1
        insort(first := self._first.setdefault(why, []), path)
        del first[MAX_NAMED:]
        if why is Why.OTHER:
            suffix = path.suffix.lower() or "no suffix"
            if suffix in self._suffixes or len(self._suffixes) < _MAX_COUNTED_SUFFIXES:
                self._suffixes[suffix] += 1

    @property
    def unreadable(self) -> bool:
        """Whether there are folders that can't be read, so that nobody knows what is in them."""
        return self._counts[Why.UNREADABLE] > 0

    def describe(self) -> str:
        """How many of which kind, and the first of them; empty if nothing."""
        return "; ".join(self._kind(why) for why in Why if self._counts[why])

    def _kind(self, why: Why) -> str:
        suffixes, count, first = "", self._counts[why], self._first[why]
        if why is Why.OTHER:
            counted = sorted(self._suffixes.items(), key=lambda one: (-one[1], one[0]))
            named = [f"{suffix} {number}" if len(counted) > 1 else suffix for suffix, number in counted[:_MAX_SUFFIXES]]
            suffixes = f" ({', '.join(named)}{', ...' if len(counted) > _MAX_SUFFIXES else ''})"
        more = f" and {count - MAX_NAMED} more" if count > MAX_NAMED else ""
        return f"{why.of(count)}{suffixes}: {', '.join(map(readable, first))}{more}"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder's images, in the order of their paths, and what was left out."""

    images: tuple[Path, ...]
    left_out: LeftOut

    def describe(self) -> str:
        """What was left out; empty if nothing."""
        return self.left_out.describe()


def scan(root: Path) -> Folder:
    """Find all images below a folder, as `walk` does, in order."""
    left_out = LeftOut()
    return Folder(tuple(sorted(walk(root, left_out))), left_out)


def walk(root: Path, left_out: LeftOut) -> Iterator[Path]:
    """Find all images below a folder, by their suffixes, one after the other: no list of files is held.

    Links to files count as files. Links to folders are not followed, since they may lead in a circle.

    Args:
        root: the folder.
        left_out: gets what is left out, as paths within the folder.
    """
    waiting = [os.fspath(root)]  # text, not paths: a folder may hold a million folders
    while waiting:
        place, below = waiting.pop(), []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        below.append(entry.path)
                        continue
                    why = _why_not(entry, path := Path(entry.path))
                    if why is None:
                        yield path
                    else:
                        left_out.add(why, path.relative_to(root))
        except OSError:
            left_out.add(Why.UNREADABLE, Path(place).relative_to(root))
        waiting += sorted(below, reverse=True)


def _why_not(entry: os.DirEntry[str], path: Path) -> Why | None:
    # Only what links lead to must be looked up: folders may hold millions of files. `Path` would raise an error where
    # that is forbidden, and the rest of the folder would be lost.
    linked = entry.is_symlink()
    if entry.name.startswith("."):
        return Why.HIDDEN_FOLDER if os.path.isdir(path) else Why.HIDDEN
    if linked and os.path.isdir(path):
        return Why.LINKED_FOLDER
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
        return Why.OTHER
    if os.path.isfile(path) if linked else entry.is_file(follow_symlinks=False):
        return None
    return Why.DEAD_LINK if linked and not os.path.exists(path) else Why.SPECIAL
