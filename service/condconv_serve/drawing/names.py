"""Names of pictures' files: never two alike, and none that leads out of its folder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

_SUFFIX = ".png"
_STDIN = "-"
_MOST_PARENTS = 3
_MOST_BYTES = 200
"""File systems take 255; a number may follow, and a scratch file has a longer name."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069]')


def picture_names(photos: Sequence[str]) -> list[str]:
    """Name a picture for each photo: as its file, with `.png`.

    If photos in several folders have one name, their pictures have their folders' names, too; what is still alike gets
    a number. Upper and lower case make no difference, since some file systems don't tell them apart.

    Args:
        photos: names of files as they were given; `-` is standard input.
    """
    names = [_name(photo, parents=0) for photo in photos]
    for parents in range(1, _MOST_PARENTS + 1):
        alike = Counter(map(_key, names))
        names = [
            _name(photo, parents=parents) if alike[_key(name)] > 1 else name
            for photo, name in zip(photos, names, strict=True)
        ]
    taken, last, different = set[str](), Counter[str](), list[str]()
    for name in names:
        found = f"{name}{_SUFFIX}"
        while _key(found) in taken:
            last[_key(name)] += 1
            found = numbered(f"{name}{_SUFFIX}", last[_key(name)] + 1)
        taken.add(_key(found))
        different.append(found)
    return different


def numbered(name: str, number: int) -> str:
    """Another name for the same picture: `cat-2.png`."""
    return f"{name.removesuffix(_SUFFIX)}-{number}{_SUFFIX}"


def _name(photo: str, *, parents: int) -> str:
    if photo == _STDIN:
        return "stdin"
    path = PurePath(photo)
    folders = [part for part in path.parts[:-1] if part not in (path.anchor, ".", "..")]
    name = "-".join([*folders[max(0, len(folders) - parents) :], path.stem])
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFC", name)).strip(" .") or "photo"
    if safe.startswith("-"):  # commands would take it for an option
        safe = f"_{safe}"
    return safe.encode()[:_MOST_BYTES].decode(errors="ignore")


def _key(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
