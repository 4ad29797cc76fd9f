"""What other servers' answers, and failures to get one, say."""

from __future__ import annotations

import httpx


def validator_of(response: httpx.Response) -> str | None:
    """What tells whether the file is still the same: its ETag, unless that is weak, or else its date."""
    etag: str | None = response.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):
        return etag
    modified: str | None = response.headers.get("Last-Modified")
    return modified


def number(text: str | None) -> int | None:
    """A whole number that is not negative; None if the text is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def meaning_of(status: int) -> str:
    """What a status code means for a download, to put after it; empty if nothing more can be said."""
    return {
        401: ": it wants a login",
        403: ": it gives the file to nobody, or not to you",
        404: ": there is no such file",
        407: ": the proxy wants a login",
        410: ": the file is gone",
    }.get(status, "")


def origin_of(error: BaseException) -> BaseException:
    """What an error arose from in the end."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def reason_of(error: Exception) -> str:
    """An error in words, without a full stop."""
    return str(error).rstrip(".") or type(error).__name__
