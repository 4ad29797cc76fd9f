"""Files named on the command line: images, folders of images, globs."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from condconv_serve.errors import BodyTooLarge, MissingImage
from condconv_serve.imaging.formats import IMAGE_SUFFIXES


def expand(arguments: Sequence[str]) -> list[Path]:
    """Turn files, directories (with all below them) and globs into files.

    Raises:
        MissingImage: an argument stands for no file.
    """
    files: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        elif path.exists():
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if Path(match).is_file()]
        if not found:
            raise MissingImage(f"{argument}: no such file, no directory with images, and no glob that matches any.")
        files.extend(found)
    return files


def read_image(file: Path, max_bytes: int) -> bytes:
    """Read an image file.

    Raises:
        BodyTooLarge: it has more than `max_bytes`. MissingImage: it can't be read.
    """
    try:
        if (size := file.stat().st_size) > max_bytes:
            raise BodyTooLarge(f"The file has {size} bytes; the most allowed is {max_bytes}.")
        return file.read_bytes()
    except OSError as error:
        raise MissingImage(f"The file can't be read: {error.strerror}.") from error
