"""A file server over real sockets that can misbehave in every way that servers and networks do, and a proxy."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

Behaviour = Callable[["Handler", "File"], None]


@dataclass
class File:
    """What is served under a path: `behaviours` are used up one per request, then it is served as it should be."""

    content: bytes
    etag: str | None = '"first"'
    headers: dict[str, str] = field(default_factory=dict)
    behaviours: list[Behaviour] = field(default_factory=list)
    always: Behaviour | None = None


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        self.server.seen.append(Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        file = self.server.files.get(urlsplit(self.path).path)
        if file is None:
            status(404)(self, File(b""))
            return
        behave = file.behaviours.pop(0) if file.behaviours else file.always or serve
        try:
            behave(self, file)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response_only(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, content: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    files: dict[str, Any]
    seen: list[Any]
    closing: threading.Event

    def handle_error(self, *_: Any) -> None:
        """Clients that leave are no news."""


class FileServer:
    """Serves `files` by path on a port of its own; `seen` are the requests so far."""

    def __init__(self, *, context: ssl.SSLContext | None = None, handler: type[Handler] = Handler) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.files: dict[str, Any] = {}
        self.seen: list[Any] = []
        self.closing = threading.Event()
        self._server.files, self._server.seen, self._server.closing = self.files, self.seen, self.closing
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.scheme = "http" if context is None else "https"

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def add(self, path: str, content: bytes, *behaviours: Behaviour, **more: Any) -> str:
        """Serve a file; returns its URL."""
        self.files[path] = File(content, behaviours=list(behaviours), **more)
        return self.url(path)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def described(file: File) -> dict[str, str]:
    return {**({"ETag": file.etag} if file.etag is not None else {}), **file.headers}


def wanted(handler: Handler, file: File) -> int | None:
    """The first byte of the range that is asked for, if it is asked for and the file is still the same."""
    match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    condition = handler.headers.get("If-Range")
    same = condition is None or condition in (file.etag, file.headers.get("Last-Modified"))
    return int(match[1]) if match and same else None


def opening(handler: Handler, file: File) -> bytes:
    """Answer with the right headers; returns the right body."""
    start, total = wanted(handler, file), len(file.content)
    if start is None:
        handler.head(200, {**described(file), "Content-Length": str(total)})
        return file.content
    if start >= total:
        handler.head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
        return b""
    part = file.content[start:]
    handler.head(
        206,
        {
            **described(file),
            "Content-Length": str(len(part)),
            "Content-Range": f"bytes {start}-{total - 1}/{total}",
        },
    )
    return part


def serve(handler: Handler, file: File) -> None:
    """As it should be."""
    handler.body(opening(handler, file))


def hang_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def broken_after(count: int) -> Behaviour:
    """The connection ends in the middle."""

    def behave(handler: Handler, file: File) -> None:
        handler.body(opening(handler, file)[:count])
        hang_up(handler)

    return behave


def stalled_after(count: int) -> Behaviour:
    """Nothing more comes, but the connection stays."""

    def behave(handler: Handler, file: File) -> None:
        handler.body(opening(handler, file)[:count])
        handler.server.closing.wait(60)
        hang_up(handler)

    return behave


def silent_at(place: int) -> Behaviour:
    """As it should be, but nobody gets from before this place beyond it."""

    def behave(handler: Handler, file: File) -> None:
        start = wanted(handler, file) or 0
        content = opening(handler, file)
        if start >= place:
            handler.body(content)
            return
        handler.body(content[: place - start])
        handler.server.closing.wait(60)
        hang_up(handler)

    return behave


def dripping_until(noticed: Callable[[], bool]) -> Behaviour:
    """A byte now and then, so that no timeout of reading is reached; as it should be once that was noticed."""

    def behave(handler: Handler, file: File) -> None:
        content = opening(handler, file)
        if noticed():
            handler.body(content)
            return
        for i in range(len(content)):
            handler.body(content[i : i + 1])
            if handler.server.closing.wait(0.05):
                break
        hang_up(handler)

    return behave


def ignoring_ranges(then: Behaviour = serve) -> Behaviour:
    def behave(handler: Handler, file: File) -> None:
        del handler.headers["Range"]
        then(handler, file)

    return behave


def announcing(count: int) -> Behaviour:
    """A lie about the length; then the connection ends."""

    def behave(handler: Handler, file: File) -> None:
        handler.head(200, {**described(file), "Content-Length": str(count)})
        handler.body(file.content)
        hang_up(handler)

    return behave


def chunked(handler: Handler, file: File) -> None:
    """No length announced."""
    handler.head(200, {**described(file), "Transfer-Encoding": "chunked"})
    for start in range(0, len(file.content), 50_000):
        piece = file.content[start : start + 50_000]
        handler.body(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.body(b"0\r\n\r\n")


def status(code: int, **headers: str) -> Behaviour:
    def behave(handler: Handler, _: File) -> None:
        handler.head(
            code, {"Content-Length": "0", **{name.replace("_", "-"): value for name, value in headers.items()}}
        )

    return behave


def replaced_by(content: bytes, etag: str | None, then: Behaviour = serve) -> Behaviour:
    """The file changes, and stays changed."""

    def behave(handler: Handler, file: File) -> None:
        file.content, file.etag = content, etag
        then(handler, file)

    return behave


def wrong_range(first: int, total: int | None = None) -> Behaviour:
    """Another range than was asked for."""

    def behave(handler: Handler, file: File) -> None:
        total_said = total or len(file.content)
        part = file.content[first:]
        headers = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{total_said}"}
        handler.head(206, {**described(file), **headers, "Content-Length": str(len(part))})
        handler.body(part)

    return behave


class _ProxyHandler(Handler):
    """Forwards plain requests, and tunnels others."""

    def do_GET(self) -> None:
        self.server.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
        parts = urlsplit(self.path)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("proxy-connection", "connection")}
        upstream = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=30)
        with contextlib.closing(upstream):
            upstream.request(self.command, parts.path, headers=kept)
            with upstream.getresponse() as answer:
                content = answer.read()
                self.head(answer.status, {k: v for k, v in answer.getheaders() if k.lower() != "connection"})
        self.body(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        self.server.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as upstream:
            self.head(200, {})
            ends = {self.connection: upstream, upstream: self.connection}
            while not self.server.closing.is_set():
                ready, _, _ = select.select(list(ends), [], [], 0.05)
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)


class ProxyServer(FileServer):
    """A forward proxy; `seen` tells what went through it."""

    def __init__(self) -> None:
        super().__init__(handler=_ProxyHandler)
