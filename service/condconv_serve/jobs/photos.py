"""The photos of a job: found while it runs, each with what tells whether it has changed since."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from condconv_serve.domain import readable
from condconv_serve.errors import InvalidParameter, MissingImage
from condconv_serve.inputs.files import STDIN, LocalImage, expand
from condconv_serve.inputs.folders import LeftOut, walk

_MOST_NS = 2**63 - 1
"""A file may have a time after the year 2262, which neither SQLite nor Parquet can hold."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A file that is to be answered.

    Attributes:
        path: as it was found, below what was given.
        size: in bytes; None if that can't be known.
        mtime_ns: when it was changed, in nanoseconds since 1970, at most those that fit into 64 bits; None if that
            can't be known.
    """

    path: str
    size: int | None
    mtime_ns: int | None

    @classmethod
    def at(cls, path: str) -> Self:
        """The file as it is now."""
        try:
            found = os.stat(path)
        except OSError:  # it has just gone; who reads it says so
            return cls(path, None, None)
        return cls(path, found.st_size, min(max(found.st_mtime_ns, -_MOST_NS), _MOST_NS))

    @property
    def key(self) -> bytes:
        """Its path, byte by byte: names needn't be UTF-8."""
        return os.fsencode(self.path)

    @property
    def image(self) -> LocalImage:
        """What is read."""
        return LocalImage(readable(self.path), Path(self.path))


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of the photos that one of several machines answers; which one a photo's path decides alone."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1/4`.

        Raises:
            InvalidParameter: it isn't like that.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InvalidParameter(f"--shard is like 1/4, the first of four shares, up to 4/4; not {text}.")
        return cls(int(match[1]), int(match[2]))

    def __contains__(self, path: str) -> bool:
        """Whether the photo at this path is in it."""
        return zlib.crc32(os.fsencode(path)) % self.count == self.number - 1

    def __str__(self) -> str:
        """As it is given."""
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)


class Photos:
    """The photos that files, folders and globs stand for, found anew each time that they are gone through.

    Attributes:
        left_out: what folders hold besides, as far as the last time has come.
    """

    def __init__(self, arguments: Sequence[str], shard: Shard = WHOLE) -> None:
        """Look at what was given; folders are gone through later.

        Raises:
            MissingImage: an argument stands for no file or folder, or for what can't be read a second time.
        """
        if STDIN in arguments:
            raise MissingImage("Images can't come from standard input here: give files, folders or globs.")
        places: list[Path] = []
        for argument in arguments:
            places += [Path(argument)] if argument and Path(argument).is_dir() else expand([argument])
        # Of each kind in the order given, once each. What is a folder now stays one: it may go away, and come back.
        self._files: dict[str, None] = {}
        self._folders: dict[Path, None] = {}
        for place in places:
            if stat.S_ISDIR(mode := place.stat().st_mode):
                self._folders[place] = None
            elif stat.S_ISREG(mode):
                self._files[os.fspath(place)] = None
            else:
                raise MissingImage(f"{readable(place)}: this is no file or folder, so a job can't go back to it.")
        self._shard = shard
        self.left_out = LeftOut()

    def paths(self, left_out: LeftOut | None = None) -> Iterator[str]:
        """The path of each photo. Folders are walked, not listed, and their order is the file system's.

        Args:
            left_out: gets what folders hold besides, if it is wanted.
        """
        return (path for path in self._of_all_shares(left_out or LeftOut()) if path in self._shard)

    def others_have_some(self) -> bool:
        """Whether there are photos, though in shares of other machines."""
        return any(path not in self._shard for path in self._of_all_shares(LeftOut()))

    def __iter__(self) -> Iterator[Photo]:
        """Each photo, as it is in this moment."""
        self.left_out = LeftOut()
        return map(Photo.at, self.paths(self.left_out))

    def __contains__(self, path: str) -> bool:
        """Whether a path is one of those that were given, or below one."""
        given = path in self._files or any(Path(path).is_relative_to(folder) for folder in self._folders)
        return given and path in self._shard

    def _of_all_shares(self, left_out: LeftOut) -> Iterator[str]:
        yield from self._files
        for folder in self._folders:
            for path in map(os.fspath, walk(folder, left_out)):
                if path not in self._files:
                    yield path
