"""Where a client connects, and how: the same for threads and asyncio."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from condconv_serve import __version__
from condconv_serve.client.answers import Reply
from condconv_serve.client.exchange import RequestPolicy, Send
from condconv_serve.client.options import check_seconds, query_of
from condconv_serve.errors import ConfigurationError, InvalidParameter
from condconv_serve.settings import client_variable

LOCAL = "http://127.0.0.1:8000"
API_KEY_HEADER = "X-API-Key"  # pragma: allowlist secret
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
"""An idle connection is closed before the server does it, which could be in the moment of the next request."""

_PASSWORD = re.compile(r"[^/]*@")

Verify = bool | str | Path | ssl.SSLContext


class Connection:
    """What both clients make of their arguments.

    Attributes:
        url: the server's address, without a password; for messages.
        options: for `httpx.Client` and `httpx.AsyncClient`.
        policy: how the server is asked.
        concurrency: how many requests of one call are under way at once.
    """

    def __init__(
        self,
        url: str | None,
        *,
        api_key: str | None,
        timeout: float,
        retries: int,
        concurrency: int,
        verify: Verify,
        proxy: str | None,
    ) -> None:
        """Check the arguments; they are those of `Client`.

        Raises:
            ConfigurationError: there can be no such server, key, proxy, or certificates.
            InvalidParameter: a number is impossible.
        """
        check_seconds("timeout", timeout)
        for name, value, least in (("retries", retries, 0), ("concurrency", concurrency, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidParameter(f"{name} is a whole number from {least} on, not {value!r}.")
        given = url or client_variable("URL") or LOCAL
        self.url, base_url = _address(given)
        self.concurrency = concurrency
        self.policy = RequestPolicy(server=self.url, seconds=timeout, retries=retries)
        self.options: dict[str, Any] = {
            "base_url": base_url,
            "headers": {"User-Agent": f"condconv-serve/{__version__}", **_key_header(api_key)},
            # Reading the authorities takes longer than all else here, and nobody shows a certificate without TLS.
            "verify": _verify(verify) if base_url.scheme == "https" else False,
            "limits": httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS),
        }
        if proxy is not None:
            self.options["proxy"] = _proxy(proxy)


def request_of(client: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
    """The request of a step.

    Raises:
        InvalidParameter: a parameter can't be written.
    """
    call = step.call
    query = dict(call.query)
    body: dict[str, Any] = {}
    if call.content is not None:
        body = {"content": call.content, "headers": {"Content-Type": "application/octet-stream"}}
    elif call.files:
        # The server needs some name to tell files from fields; yours stay here.
        names = [("image", (str(number), data, "application/octet-stream")) for number, data in enumerate(call.files)]
        body = {"files": names}
    elif call.json is not None:
        body = {"json": call.json}
    if step.timeout_ms is not None:
        if call.json is None:
            query |= query_of({"timeout_ms": step.timeout_ms})
        else:
            body = {"json": {**call.json, "timeout_ms": step.timeout_ms}}
    try:
        return client.build_request(
            call.method,
            call.path,
            params=query or None,
            timeout=httpx.Timeout(step.seconds, connect=min(step.seconds, CONNECT_SECONDS)),
            **body | {"headers": {**body.get("headers", {}), **call.headers}},
        )
    except (httpx.InvalidURL, TypeError, ValueError) as error:  # too long, not UTF-8, not finite, or no JSON at all
        raise InvalidParameter(f"The request can't be written: {error}.") from error


def reply_of(response: httpx.Response, content: bytes, server: str) -> Reply:
    """An answer that is here as a whole."""
    return Reply(server=server, status=response.status_code, headers=response.headers, content=content)


def _address(given: str) -> tuple[str, httpx.URL]:
    """The address for messages, and the one to connect to."""
    shown = _PASSWORD.sub("", str(given))
    try:
        url = httpx.URL(given)
        url.raw_host.decode().encode("idna")  # as whoever looks it up does, and fails later
        host = url.host
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{shown!r} is not the address of a server. Write it like {LOCAL}.") from error
    if url.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{shown!r} is not the address of a server. Write it like {LOCAL}.")
    if url.query or url.fragment:
        raise ConfigurationError(f"{shown!r} is not the address of a server: leave out what begins with ? or #.")
    return shown.rstrip("/"), url


def _key_header(api_key: str | None) -> Mapping[str, str]:
    if api_key is not None and not isinstance(api_key, str):
        raise ConfigurationError(f"An API key is text, not {type(api_key).__name__}.")
    key = (client_variable("API_KEY") or "" if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("The API key holds characters that no key has.")
    return {API_KEY_HEADER: key} if key else {}


def _verify(verify: Verify) -> bool | ssl.SSLContext:
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    if not isinstance(verify, str | Path):
        raise ConfigurationError(
            "verify is True, False, a file or directory of certificates, or an ssl.SSLContext, not "
            f"{type(verify).__name__}."
        )
    path = Path(verify)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{path} holds no certificates that can be read: {error}.") from error


def _proxy(proxy: str) -> httpx.Proxy:
    try:
        return httpx.Proxy(proxy)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise ConfigurationError(f"The address of the proxy is unusable: {str(error).rstrip('.')}.") from error
