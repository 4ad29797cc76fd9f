"""What is accepted here, and what is said about anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from condconv_serve.errors import UnsupportedImage
from condconv_serve.imaging.foreign import identify
from condconv_serve.imaging.formats import ACCEPTED_FORMATS, FormatName
from condconv_serve.imaging.heif import can_read_avif, can_read_heic

_MISSING_READERS: Final[Mapping[FormatName, str]] = {
    "AVIF": "This is an AVIF image, and the server's Pillow was built without AVIF. Convert it to JPEG or PNG first.",
    "HEIC": "This is a HEIC photo, as phones take them, and the server has no reader for it. Convert it to JPEG or PNG "
    "first, or have the reader installed: pip install 'condconv-serve[heif]'.",
}


def accepted_formats() -> tuple[FormatName, ...]:
    """Those of `ACCEPTED_FORMATS` that are read here: for AVIF and HEIC that depends on what is installed."""
    missing = {name for name, there in (("AVIF", can_read_avif()), ("HEIC", can_read_heic())) if not there}
    return tuple(name for name in ACCEPTED_FORMATS if name not in missing)


def refusal(name: FormatName | None, data: bytes) -> UnsupportedImage:
    """Make the error for bytes that aren't read: what they are, what to do about it, and what is accepted.

    Args:
        name: the format, if it is one of `ACCEPTED_FORMATS` that isn't read here.
        data: the bytes.
    """
    return UnsupportedImage(_reason(name, data))


def _reason(name: FormatName | None, data: bytes) -> str:
    formats = accepted_formats()
    accepted = f"{', '.join(formats[:-1])} and {formats[-1]} are accepted"
    if name is not None:
        return f"{_MISSING_READERS[name]} {accepted}."
    if not data:
        return f"The image is empty; {accepted}."
    if (known := identify(data)) is not None:
        what, advice = known
        return f"This is {what}. {advice} {accepted}."
    return f"These bytes are no image of an accepted format; {accepted}."
