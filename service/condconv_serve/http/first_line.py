"""What the first line of a request says, where nothing else of it can be read."""

from __future__ import annotations

import httptools

_LONGEST = 2048
"""Most bytes in which a target is looked for; its beginning tells the front."""


def target_in(data: bytes) -> bytes:
    """The target in the first bytes of a request, such as `/v2/models?a=b`; empty if there is none."""
    parts = data[:_LONGEST].split(b" ", 2)
    return parts[1] if len(parts) > 1 else b""


def path_in(target: bytes) -> str:
    """The path in a target, or in its beginning; empty if there is none."""
    try:
        path: bytes | None = httptools.parse_url(target).path
    except httptools.HttpParserInvalidURLError:
        path = target.partition(b"?")[0] if target.startswith(b"/") else None
    return (path or b"").decode("latin-1")
