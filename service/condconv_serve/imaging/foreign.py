"""Says what bytes are that are no image of an accepted format, and what to do about it."""

from __future__ import annotations

import re
from typing import Final

from condconv_serve.errors import UnsupportedImage

_CONVERT = "Convert it to JPEG or PNG first."
_FRAME = "Take a frame out of it first."
_UNPACK = "Unpack it first."
_EXPORT = "Export it as JPEG or PNG."

RAW_PHOTO: Final = "a raw photo of a camera (DNG, NEF, CR2 or the like)"

_SIGNATURES: Final = (
    (b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", _CONVERT),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", _CONVERT),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image", _CONVERT),
    (b"II\xbc\x01", "a JPEG XR image", _CONVERT),
    (b"8BPS", "a Photoshop document (PSD)", _EXPORT),
    (b"%PDF-", "a PDF document", "Export its page as PNG."),
    (b"%!PS", "a PostScript document", "Export its page as PNG."),
    (b"\0\0\1\0", "an icon (ICO)", _CONVERT),
    (b"icns", "an icon (ICNS)", _CONVERT),
    (b"v/1\x01", "an OpenEXR image", _CONVERT),
    (b"qoif", "a QOI image", _CONVERT),
    (b"FUJIFILMCCD-RAW", "a raw photo of a camera (RAF)", _EXPORT),
    (b"IIU\0", "a raw photo of a camera (RW2)", _EXPORT),
    (b"IIRO", "a raw photo of a camera (ORF)", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", "Save it as PNG."),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", _FRAME),
    (b"\0\0\1\xba", "a video (MPEG)", _FRAME),
    (b"\0\0\1\xb3", "a video (MPEG)", _FRAME),
    (b"FLV\x01", "a video (FLV)", _FRAME),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"PK\3\4", "a zip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (b"version https://git-lfs.", "a Git LFS pointer, which stands for a file", "Fetch the file with `git lfs pull`."),
)
_TEXT_BYTES = 1024
"""How much of a text tells its kind."""

_ENCODED = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK")
"""How images begin in base64: JPEG, PNG, GIF, WebP and TIFF."""


def identify(data: bytes) -> tuple[str, str] | None:
    """Say what some bytes are, such as `a PDF document`, and what to do, in a sentence; None if nobody knows."""
    for signature, what, advice in _SIGNATURES:
        if data.startswith(signature):
            return what, advice
    if data[4:12] == b"ftypcrx ":
        return "a raw photo of a camera (CR3)", _EXPORT
    if data[4:8] == b"ftyp":
        return "a video (MP4 or QuickTime)", _FRAME
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "a video (AVI)", _FRAME
    if data[128:132] == b"DICM":
        return "a DICOM image", _EXPORT
    if data[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if re.match(rb"P[1-6]\s", data):
        return "a Netpbm image (PBM, PGM or PPM)", _CONVERT
    return _text(data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip())


def unread_kind(what: str) -> UnsupportedImage:
    """Make the error for a file of an accepted format, but of a kind that isn't read, say `a float64 TIFF`."""
    return UnsupportedImage(f"This is {what}, a kind that isn't read. {_CONVERT}")


def _text(start: bytes) -> tuple[str, str] | None:
    lower = start.lower()
    if b"<svg" in lower and lower.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")):
        return "an SVG drawing", "Draw it as PNG first."
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, perhaps that of an error or a login", "Download the image itself."
    if lower.startswith(b"data:"):
        return "a data URL", "Decode it first, or send it in JSON: see docs/api.md."
    if start.startswith(_ENCODED) and re.fullmatch(rb"[A-Za-z0-9+/=_\s-]+", start):
        return "an image in base64", "Decode it first, or send it in JSON: see docs/api.md."
    if lower.startswith((b"http://", b"https://")):
        return "an address", "The server fetches nothing: send the image itself."
    if start.startswith(b"--") and b"content-disposition:" in lower:
        return "a form", "Send it with its own content type, multipart/form-data with the boundary."
    if start.startswith((b"{", b"[")) and start.isascii():
        return "JSON", "Send it with the content type application/json."
    return None
