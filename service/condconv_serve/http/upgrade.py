"""Requests that ask for another protocol besides (`Upgrade: h2c`): this server speaks no other, and ignores the wish.

RFC 9110 (7.8) allows that. What follows such a request's headers is then its body.
"""

from __future__ import annotations

from collections.abc import Iterable

import httptools

_HEADERS = frozenset({b"upgrade", b"http2-settings"})


def without_wish(parser: httptools.HttpRequestParser, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The request's head without the wish, for a new parser.

    Args:
        parser: has read the head.
        url: of the request, as it was sent.
        headers: of the request; names are in lower case.

    Raises:
        HttpParserError: it asks for a tunnel, which is no wish that could be ignored.
    """
    method = parser.get_method()
    if method == b"CONNECT":
        raise httptools.HttpParserError("a tunnel")
    lines = [method + b" " + url + b" HTTP/" + parser.get_http_version().encode()]
    lines += [name + b": " + value for name, value in headers if name not in _HEADERS]
    return b"\r\n".join([*lines, b"", b""])
