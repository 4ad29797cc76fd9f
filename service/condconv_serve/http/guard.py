"""uvicorn's HTTP protocol with limits: slow headers, stuck readers, and too many connections are cut off.

uvicorn waits for headers without end, so a few hundred silent connections could take the service down.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from condconv_serve.errors import (
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from condconv_serve.http.answer import ErrorRenderer
from condconv_serve.http.limits import MAX_HEADER_BYTES, MAX_PIPELINED, REFUSED_AT_ONCE, ConnectionLimits
from condconv_serve.http.scope import REQUEST_ID_HEADER
from condconv_serve.http.uvicorn_members import check_uvicorn
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger("condconv_serve.access")

_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})
_REFUSAL_SECONDS = 1.0
_LAST_CALL_SECONDS = 0.3


def guarded_protocol(limits: ConnectionLimits, metrics: Metrics, *, render: ErrorRenderer) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        limits: of each connection, and of their number.
        metrics: counts what is refused.
        render: makes the answers that no application can give, such as for malformed headers.

    Raises:
        ConfigurationError: this version of uvicorn lacks something that the guard replaces, so the guard would not
            work.
    """
    check_uvicorn(GuardedProtocol)
    made = partial(GuardedProtocol, limits=limits, metrics=metrics, render=render, others=_Connections())
    return cast(type[asyncio.Protocol], made)


@dataclass(slots=True)
class _Connections:
    """A server's connections of two kinds.

    Attributes:
        refused: those beyond the limit, which wait for their 503.
        idle: those whose last request has been answered, and on which nothing has come since; idle longest first.
    """

    refused: set[GuardedProtocol] = field(default_factory=set)
    idle: dict[GuardedProtocol, None] = field(default_factory=dict)


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    While no request is being answered, a deadline runs until headers are complete. It starts when the connection opens,
    and with a request's first byte. How long a connection may be idle between requests is uvicorn's
    `timeout_keep_alive`.

    Every public method replaces one of uvicorn's: those of an asyncio protocol, the callbacks of the parser, and three
    of uvicorn's own. `check_uvicorn` sees that they exist.
    """

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        metrics: Metrics,
        render: ErrorRenderer,
        others: _Connections,
        **kwargs: Any,
    ) -> None:
        """Prepare for one connection. A server's connections share `others`; the other arguments are uvicorn's."""
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._metrics = metrics
        self._render = render
        self._refused = others.refused
        self._idle = others.idle
        self._header_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._running: RequestResponseCycle | None = None
        self._closing = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline, or refuse."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and self._idle:
            self._make_room()
        if len(self.connections) > self._limits.max_connections:
            self._refuse()
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks, and tell the request that is being answered."""
        self._stop_header_timer()
        self._stop_abort_timer()
        self._refused.discard(self)
        self._idle.pop(self, None)
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells only the newest request, which may wait behind this one.
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse what comes, unless the connection is ending."""
        self._idle.pop(self, None)
        if self in self._refused:
            self._refused.discard(self)
            self._fail(
                TooManyConnections(
                    f"All {self._limits.max_connections} connections that are allowed are in use.",
                    retry_after=_REFUSAL_SECONDS,
                )
            )
        if self._closing:
            return
        if not self._answering():  # wait for the rest of a body that was answered early no longer than for headers
            self._start_header_timer()
        self._header_bytes += len(data)
        self._parse(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self._closing:
            self._end_message(
                HeadersTooLarge(f"The headers have more than {MAX_HEADER_BYTES} bytes, the most that is allowed.")
            )

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        super().pause_writing()
        self._abort_later(self._limits.write_timeout)

    def resume_writing(self) -> None:
        """The client has read something."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_abort_timer()

    # What the parser tells

    def on_message_begin(self) -> None:
        """A request's first byte is here."""
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._start_header_timer()

    def on_headers_complete(self) -> None:
        """The headers are here; from now on the application decides how long to wait."""
        if self.parser.should_upgrade():
            return  # they come again without the wish
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests before their answers")
        self._stop_header_timer()
        self._header_bytes = 0
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_body(self, body: bytes) -> None:
        """A part of the body is here. A trailer or the like within a body counts as a header."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete; the next one may take its time."""
        if self.parser.should_upgrade():
            return
        self._stop_header_timer()
        self._header_bytes = 0
        super().on_message_complete()
        if not self._answering() and not self._closing and not self.transport.is_closing():
            # It was answered before its body had come, which stopped the clock of idle connections.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._idle[self] = None

    # What uvicorn tells

    def on_response_complete(self) -> None:
        """Go on to the next request, or wait for the client to read the last answer."""
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_later(self._limits.write_timeout)
        elif not self._closing and not self._answering() and not self.cycle.more_body:
            self._idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection ends."""
        self._close()

    def shutdown(self) -> None:
        """The server is about to end; a request that is on its way already is still answered."""
        if self._answering():
            super().shutdown()
        else:
            self.loop.call_later(_LAST_CALL_SECONDS, self._end)

    def _end(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._abort_later(self._limits.write_timeout)

    # Parsing

    def _parse(self, data: bytes) -> None:
        """Parse as uvicorn does, but go on if a request asks for another protocol: this server speaks no other.

        The parser takes everything after such a request's headers for the other protocol, and uvicorn drops it. RFC
        9110 (7.8) lets a server ignore the wish; then what follows is the request's body.
        """
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while len(rest):
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    self._repeat_without_upgrade()
        except httptools.HttpParserError:
            if self._is_receiving():
                self._end_message(MalformedRequest("The body is not encoded as the headers say."))
            else:
                self._end_message(MalformedRequest("This is no valid HTTP/1.1 request."))

    def _repeat_without_upgrade(self) -> None:
        """Give the headers to a new parser, which then expects the body that they announce."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("a tunnel")
        version = self.parser.get_http_version().encode()
        headers = [(name, value) for name, value in self.headers if name not in _UPGRADE_HEADERS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        lines = [method + b" " + self.url + b" HTTP/" + version, *(name + b": " + value for name, value in headers)]
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_receiving(self) -> bool:
        cycle = self.cycle
        return self._answering() and cycle.more_body and not cycle.response_started and not self.pipeline

    # Deadlines

    def _start_header_timer(self) -> None:
        if self._header_timer is None and not self._closing:
            self._header_timer = self.loop.call_later(self._limits.header_timeout, self._headers_are_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self._answering():  # pipelined behind a request that we are slow with ourselves
            self._start_header_timer()
            return
        error = RequestTimeout(f"The headers were incomplete after {self._limits.header_timeout:g} seconds.")
        if self._header_bytes:
            self._fail(error)
        else:  # browsers open connections ahead of need and don't expect an answer on them
            self._metrics.rejected.labels(error.slug).inc()
            self._close()

    def _abort_later(self, seconds: float) -> None:
        self._stop_abort_timer()
        self._abort_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_abort_timer(self) -> None:
        if self._abort_timer is not None:
            self._abort_timer.cancel()
            self._abort_timer = None

    # Refusals

    def _make_room(self) -> None:
        """Close the connection that is idle longest: whoever keeps connections for later must not keep others out."""
        longest = next(iter(self._idle))
        self.connections.discard(longest)
        longest._close()

    def _refuse(self) -> None:
        """Answer once a request comes, since a client that is still sending would not read an earlier answer."""
        self.connections.discard(self)
        if len(self._refused) >= REFUSED_AT_ONCE:
            self._metrics.rejected.labels(TooManyConnections.slug).inc()
            self._closing = True
            self.transport.abort()
            return
        self._refused.add(self)
        self._abort_later(_REFUSAL_SECONDS)

    def _end_message(self, error: ServiceError) -> None:
        """Answer a request that can't be read any further, after the requests before it."""
        if self._is_receiving():
            self._fail(error)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        else:
            self._reject(error)

    def _reject(self, error: ServiceError) -> None:
        """Take nothing more from this client; a request before still gets its answer."""
        if self._answering():
            self._stop_header_timer()
            self.cycle.keep_alive = False
            self._closing = True
        else:
            self._fail(error)

    def _fail(self, error: ServiceError) -> None:
        """Answer with an error outside of any application, and end the connection."""
        self._stop_header_timer()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        request_id = uuid.uuid4().hex
        answer = self._render(error)
        headers = [
            *self.server_state.default_headers,
            *answer.headers,
            (REQUEST_ID_HEADER.lower().encode(), request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([STATUS_LINE[answer.status], *lines, b"\r\n", answer.body]))
        self._metrics.rejected.labels(error.slug).inc()
        logger.info(
            "connection ended with %d: %s [%s]",
            answer.status,
            error,
            request_id,
            extra={"request_id": request_id, "status": answer.status, "outcome": error.slug},
        )
        # If we closed the connection now, bytes that the client still sends would reset it, and the answer would be
        # lost.
        self._closing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._abort_later(_REFUSAL_SECONDS)
        else:
            self._close()

    def _close(self) -> None:
        self._closing = True
        self._idle.pop(self, None)
        if not self.transport.is_closing():
            self.transport.close()
        # Closing waits for the client to read what has been written.
        self._abort_later(self._limits.write_timeout)
