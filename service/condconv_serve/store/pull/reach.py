"""Finds out within seconds whether a server can be reached, before anything waits for it or tries again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import httpx

from condconv_serve.errors import DownloadFailed

_PORTS = {"http": 80, "https": 443}
_SECONDS_FOR_ONE_ADDRESS = 0.25
"""After this the next address of a name is tried beside the first: IPv6 often leads nowhere."""


class Unreachable(DownloadFailed):
    """There is no way to a server: no network, no such name, nobody who listens, or a proxy that doesn't work."""

    def __init__(self, message: str, *, url: str, proxy: str | None) -> None:
        """Say what failed; `proxy` is the `host:port` of the proxy on the way to `url`, if there is one."""
        super().__init__(message)
        self.url = url
        self.proxy = proxy


def check_reachable(client: httpx.Client, url: str, *, seconds: float) -> str | None:
    """Connect to a URL's server, or to the proxy on the way, and close the connection.

    Args:
        client: knows the environment's proxies.
        url: http or https.
        seconds: in which there must be a connection, name lookup included.

    Returns:
        `host:port` of the proxy; None if there is none.

    Raises:
        Unreachable: there is no connection in this time.
        httpx.HTTPError, httpx.InvalidURL: no request can be made to this URL.
    """
    host, port = _first_hop(client, url)
    wanted = httpx.URL(url)
    direct = (host, port) == (wanted.raw_host.decode(), wanted.port or _PORTS[wanted.scheme])
    proxy = None if direct else f"{host}:{port}"
    # A thread of its own that nobody waits for: looking up a name can't be interrupted, and may take half a minute.
    outcome: SimpleQueue[OSError | None] = SimpleQueue()
    threading.Thread(target=_connect, args=(host, port, outcome), daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except Empty:
        raise unreachable(f"no connection in {seconds:g} seconds", url=url, proxy=proxy) from None
    if error is not None:
        raise unreachable(_reason(error), url=url, proxy=proxy) from error
    return proxy


def unreachable(reason: str, *, url: str, proxy: str | None) -> Unreachable:
    """The error for a URL that can't be reached, directly or through a proxy."""
    if proxy is None:
        return Unreachable(f"{urlsplit(url).hostname} can't be reached: {reason}.", url=url, proxy=None)
    return Unreachable(
        f"The proxy {proxy} can't be used to reach {urlsplit(url).hostname}: {reason}.", url=url, proxy=proxy
    )


class _Found(Exception):
    """Where the first connection goes."""

    def __init__(self, host: str, port: int) -> None:
        self.hop = host, port


def _first_hop(client: httpx.Client, url: str) -> tuple[str, int]:
    """Host and port of the first connection for a URL, as the client would make it; none is made."""

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(".connect_tcp.started"):
            raise _Found(info["host"], info["port"])

    try:
        with client.stream("GET", url, extensions={"trace": trace}):
            raise AssertionError("a request without a connection")
    except _Found as found:
        return found.hop


def _connect(host: str, port: int, outcome: SimpleQueue[OSError | None]) -> None:
    async def connect() -> None:
        _, writer = await asyncio.open_connection(host, port, happy_eyeballs_delay=_SECONDS_FOR_ONE_ADDRESS)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    try:
        asyncio.run(connect())
    except OSError as error:
        outcome.put(error)
    except (UnicodeError, ValueError) as error:  # a name that can't be one
        outcome.put(OSError(str(error)))
    else:
        outcome.put(None)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"its name can't be looked up ({error.strerror})"
    # With several addresses asyncio gives no number, but joins their messages.
    joined = re.search(r"\[Errno (\d+)\]", str(error))
    number = error.errno or (int(joined[1]) if joined else None)
    return os.strerror(number).lower() if number else str(error)
