"""When to ask a server again: the header `Retry-After`."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime


def seconds_to_wait(text: str | None) -> float | None:
    """How long `Retry-After` asks to wait, in seconds: a whole number, or a date. None if it is absent or neither."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
