"""The `Host` header of a request: one, and a valid one (RFC 9112, 3.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from condconv_serve.errors import MalformedRequest

_HOST = re.compile(rb"(\[[\w:.~%-]+\]|[\w.~%!$&'()*+,;=-]*)(:[0-9]*)?")
"""A name, which may be empty, or an address, and perhaps a port."""


def check_host(headers: Iterable[tuple[bytes, bytes]], version: str) -> None:
    """Refuse what different servers on the way could take for requests to different hosts.

    Args:
        headers: of the request; names are in lower case.
        version: of HTTP; 1.0 knows no `Host`.

    Raises:
        MalformedRequest: there is no `Host`, several, or an invalid one.
    """
    hosts = [value.strip() for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        raise MalformedRequest("The request has several Host headers; send one.")
    if not hosts and version == "1.1":
        raise MalformedRequest("The request has no Host header, which HTTP/1.1 needs.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise MalformedRequest("The Host header is no name or address, with or without a port.")


def fault_of(error: BaseException) -> str | None:
    """What the parser's error is about, if it is one of `check_host`."""
    return str(error.__context__) if isinstance(error.__context__, MalformedRequest) else None
