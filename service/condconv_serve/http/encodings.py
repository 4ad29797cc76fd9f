"""Compressed bodies: `Content-Encoding` of requests, `Accept-Encoding` of answers; gzip and deflate."""

from __future__ import annotations

import asyncio
import zlib

from condconv_serve.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

ENCODINGS = ("gzip", "deflate")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_RAW = -15
"""Deflate without the zlib header that it should have; some senders leave it out."""
_AT_ONCE = 64 * 1024
"""Up to so many bytes it is quicker here than on another thread."""
_SMALLEST = 1024
"""Smaller answers wouldn't get much smaller."""
_LEVEL = 1


def encoding_of(declared: str) -> str | None:
    """The encoding of a request's body; None if it isn't compressed.

    Args:
        declared: the request's `Content-Encoding`; empty if it has none.

    Raises:
        UnsupportedEncoding: it is compressed in another way.
    """
    name = declared.strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return None
    if name not in ENCODINGS:
        raise UnsupportedEncoding(f"The content encoding {declared[:100]!r} can't be read; gzip and deflate can.")
    return name


async def decompressed(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The body of a request before it was compressed.

    Args:
        body: as it was received.
        encoding: one of `ENCODINGS`.
        max_bytes: most bytes of the result. No more than that is ever made.

    Raises:
        BodyTooLarge: it has more bytes.
        MalformedBody: it isn't what its encoding says, or it ends early or late.
    """
    # However few bytes: they may become a thousand times as many.
    return await asyncio.to_thread(_decompress, body, encoding, max_bytes)


def _decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    # A zlib header is a multiple of 31, and its lower half byte is 8.
    headed = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
    bits = _RAW if encoding == "deflate" and not headed else _WINDOW_BITS[encoding]
    decompressor = zlib.decompressobj(bits)
    try:
        plain = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"The body can't be decompressed as {encoding}.") from error
    if len(plain) > max_bytes:
        raise BodyTooLarge(
            f"The body has more than {max_bytes} bytes once it is decompressed, the most that is allowed."
        )
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBody(
            f"The body can't be decompressed as {encoding}: it ends {'late' if decompressor.eof else 'early'}."
        )
    return plain


def encoding_for(accepted: str, size: int) -> str | None:
    """The encoding of an answer: the one that the client prefers, of equals the first; None for none.

    Args:
        accepted: the request's `Accept-Encoding`.
        size: of the answer, in bytes; small ones are never compressed.
    """
    best, weight = None, 0.0
    for entry in accepted.split(",") if size >= _SMALLEST else ():
        name, _, parameter = entry.partition(";")
        name, quality = name.strip().lower(), _quality(parameter)
        if name in (*ENCODINGS, "identity") and quality > weight:
            best, weight = name, quality
    return None if best == "identity" else best


async def compressed(body: bytes, encoding: str) -> bytes:
    """Compress an answer, quickly rather than well."""
    if len(body) <= _AT_ONCE:
        return _compress(body, encoding)
    return await asyncio.to_thread(_compress, body, encoding)


def _compress(body: bytes, encoding: str) -> bytes:
    compressor = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if not name.strip():
        return 1.0
    try:
        return float(value) if name.strip().lower() == "q" else 0.0
    except ValueError:
        return 0.0
