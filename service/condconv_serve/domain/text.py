"""Text from outside: how it is shown, and what may name a class."""

from __future__ import annotations

import os
import re

_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Of surrogate pairs; JSON may hold them. Python keeps the bytes of names as U+DC80 to U+DCFF."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def readable(path: str | os.PathLike[str]) -> str:
    r"""A file's name as UTF-8. Other bytes are spelled out, as in `caf\xe9.jpg`, as are halves of surrogate pairs."""
    text = _HALF.sub(lambda found: f"\\u{ord(found[0]):04x}", os.fspath(path))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def can_be_label(text: str) -> bool:
    """Whether a class can have this name: not blank, UTF-8, no control characters."""
    return bool(text.strip()) and readable(text) == text and not _CONTROL.search(text)
