"""Whether a file can be written somewhere, asked before the work that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv_serve.errors import InvalidParameter


def check_output_path(path: Path, suffixes: Sequence[str], *, what: str) -> None:
    """Check early that a file can be written.

    Args:
        path: the file.
        suffixes: those that it may have.
        what: begins the sentence of the error, say `a plot is`.

    Raises:
        InvalidParameter: another suffix, or no such directory.
    """
    if path.suffix.lower() not in suffixes:
        raise InvalidParameter(f"{path}: {what} written as {', '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InvalidParameter(f"{path}: there is no directory {path.parent}.")
