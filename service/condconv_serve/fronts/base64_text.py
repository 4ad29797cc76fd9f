"""Base64 of images in JSON, in all the ways that people write it."""

from __future__ import annotations

import base64
import binascii
import contextlib
from urllib.parse import unquote_to_bytes

from condconv_serve.errors import BodyTooLarge, MalformedBody

MAX_ESCAPES = 100_000
"""Most percent-encoded characters of a data URL. A million would hold up everybody for a second or two."""
# For `translate`: blanks go, and the alphabet for URLs (RFC 4648) becomes the other one.
_BLANKS = b" \t\r\n\f\v"
_ALPHABET = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: str, *, what: str) -> bytes:
    """Decode base64: either alphabet, with or without padding, blanks or `data:...,` before it.

    Args:
        text: the base64.
        what: whose it is, for messages: `Image 0`.

    Raises:
        MalformedBody: it is no base64. BodyTooLarge: it is a data URL with too many escapes.
    """
    with contextlib.suppress(ValueError):  # nearly always it is written as it should be, and then this is all
        return binascii.a2b_base64(text, strict_mode=True)
    text = text.replace("\ufeff", "")  # byte-order marks
    is_url = text[:5].lower() == "data:"
    if is_url:
        text = text.partition(",")[2]
    try:
        found = text.encode("ascii")  # of other characters a few megabytes would take seconds below
    except UnicodeEncodeError as error:
        raise MalformedBody(f"{what} is not valid base64: it holds characters that aren't ASCII.") from error
    if is_url:
        if found.count(b"%") > MAX_ESCAPES:
            raise BodyTooLarge(f"{what} has more than {MAX_ESCAPES} percent-encoded characters.")
        found = unquote_to_bytes(found)
    found = found.translate(_ALPHABET, _BLANKS).rstrip(b"=")
    try:
        return base64.b64decode(found + b"=" * (-len(found) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedBody(f"{what} is not valid base64: {error}.") from error
