"""Text that comes from outside: what may be shown, and what may name a class."""

from __future__ import annotations

import os
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def readable(path: str | os.PathLike[str]) -> str:
    r"""A file's name for documents, which are UTF-8: bytes that are none are spelled out, as in `caf\xe9.jpg`."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def can_be_label(text: str) -> bool:
    """Whether a class can be called so: not blank, UTF-8, and without control characters."""
    return bool(text.strip()) and readable(text) == text and not _CONTROL.search(text)
