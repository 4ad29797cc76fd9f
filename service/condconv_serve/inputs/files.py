"""Images named on the command line: files, folders of images, globs, and standard input."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from condconv_serve.domain import ImageSource, ServedModel, readable
from condconv_serve.errors import BodyTooLarge, MissingImage
from condconv_serve.inputs.folders import Folder, scan

STDIN = "-"

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://|data:image/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image to read: a file, or what came through standard input."""

    name: str
    file: Path | None = None
    data: bytes = b""

    @property
    def id(self) -> str:
        """Its name."""
        return self.name

    @property
    def filename(self) -> str:
        """Its name."""
        return self.name

    def read(self, model: ServedModel, *, max_bytes: int) -> ImageSource:
        """The image, for any model; the errors are those of `read_image`."""
        return ImageSource(self.read_bytes(max_bytes), filename=self.name, id=self.name)

    def read_bytes(self, max_bytes: int) -> bytes:
        """Its bytes; the errors are those of `read_image`."""
        return self.data if self.file is None else read_image(self.file, max_bytes)


def _silence(text: str) -> None:
    """Say nothing."""


def find_images(
    arguments: Sequence[str], *, max_bytes: int, note: Callable[[str], None] = _silence
) -> list[LocalImage]:
    """Turn arguments into images: as `expand`, and `-` is an image from standard input, read here.

    Raises:
        MissingImage: an argument stands for no image, or standard input holds none.
        BodyTooLarge: standard input holds more than `max_bytes`.
    """
    if arguments.count(STDIN) > 1:
        raise MissingImage("Standard input holds one image: give - once.")
    images: list[LocalImage] = []
    for argument in arguments:
        if argument == STDIN:
            images.append(LocalImage(STDIN, data=read_stdin(max_bytes)))
        else:
            images += [LocalImage(readable(file), file) for file in _files(argument, note)]
    return images


def expand(arguments: Sequence[str], *, note: Callable[[str], None] = _silence) -> list[Path]:
    """Turn files, folders (with all below them) and globs into files.

    Args:
        arguments: what was given.
        note: gets a sentence about each folder in which something is left out.

    Raises:
        MissingImage: an argument stands for no file; says why.
    """
    if STDIN in arguments:
        raise MissingImage("Images can't come from standard input here: give files, folders or globs.")
    return [file for argument in arguments for file in _files(argument, note)]


def read_image(file: Path, max_bytes: int) -> bytes:
    """Read an image file, or a pipe that has a name.

    Raises:
        BodyTooLarge: it has more than `max_bytes`. MissingImage: it can't be read.
    """
    try:
        if (size := file.stat().st_size) > max_bytes:
            raise BodyTooLarge(f"The file has {size} bytes; the most allowed is {max_bytes}.")
        with file.open("rb") as handle:
            data = handle.read(max_bytes + 1)  # a pipe says nothing about its size
    except OSError as error:
        raise MissingImage(f"The file can't be read: {error.strerror}.") from error
    if len(data) > max_bytes:
        raise BodyTooLarge(f"The file has more than {max_bytes} bytes, the most allowed.")
    return data


def read_stdin(max_bytes: int) -> bytes:
    """Read an image from standard input, to its end.

    Raises:
        MissingImage: it is a terminal, or empty. BodyTooLarge: it has more than `max_bytes`.
    """
    if sys.stdin.isatty():
        raise MissingImage("Standard input is a terminal. Send an image into it, as in: condconv predict - < photo.jpg")
    try:
        data = sys.stdin.buffer.read(max_bytes + 1)
    except OSError as error:
        raise MissingImage(f"Standard input can't be read: {error.strerror}.") from error
    if not data:
        raise MissingImage("Standard input is empty: no image came through it.")
    if len(data) > max_bytes:
        raise BodyTooLarge(f"Standard input has more than {max_bytes} bytes, the most allowed.")
    return data


def _files(argument: str, note: Callable[[str], None]) -> list[Path]:
    path = Path(argument)
    if not argument:
        raise MissingImage("An image's name is empty. Is a variable of your shell unset?")
    if path.is_dir():
        return _in_folder(argument, scan(path), note)
    if path.exists():
        return [path]
    if path.is_symlink():
        raise MissingImage(f"{argument}: this link leads to {readable(os.readlink(path))}, which is not there.")
    if url := _URL.match(argument):
        raise MissingImage(_about_url(argument, url["scheme"]))
    if not glob.has_magic(argument):
        raise MissingImage(f"{argument}: there is no such file or folder.")
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
    found = [match for match in matches if match.is_file()]
    if not found and matches:
        raise MissingImage(
            f"{argument}: this pattern matches folders only, such as {readable(matches[0])}. Give the folder, or add "
            "/* to the pattern."
        )
    if not found:
        raise MissingImage(f"{argument}: no file matches this pattern, and none has this name.")
    return found


def _in_folder(argument: str, folder: Folder, note: Callable[[str], None]) -> list[Path]:
    left_out = folder.describe()
    if not folder.images and not left_out:
        raise MissingImage(f"{argument}: this folder is empty.")
    if not folder.images:
        raise MissingImage(f"{argument}: no image is in this folder. Left out: {left_out}.")
    if left_out:
        note(f"{readable(argument)}: {len(folder.images)} images. Left out: {left_out}.")
    return list(folder.images)


def _about_url(argument: str, scheme: str | None) -> str:
    match (scheme or "data").lower():
        case "file":
            return f"{argument}: give the file's path, without file://."
        case "http" | "https" | "ftp":
            return (
                f"{argument}: this is a URL, and nothing is fetched from the network. Download it first: "
                f"curl -Lo photo.jpg '{argument}'"
            )
        case "data":
            return "data:image/...: this is a URL that holds an image. Decode it into a file first."
    return f"{argument}: this is a URL, and nothing is fetched from the network. Download it first."
