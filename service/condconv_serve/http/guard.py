"""uvicorn's HTTP protocol with limits: slow headers, stuck readers, and too many connections are cut off.

uvicorn waits for headers without end, so a few hundred silent connections could take the service down. And it closes
connections while clients are still sending, which takes their answers away.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from condconv_serve.errors import (
    Draining,
    HeadersTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from condconv_serve.http.answer import RendererOf, last_answer
from condconv_serve.http.connections import Connections
from condconv_serve.http.first_line import target_in
from condconv_serve.http.host import check_host, fault_of
from condconv_serve.http.limits import MAX_HEADER_BYTES, MAX_PIPELINED, REFUSED_AT_ONCE, ConnectionLimits
from condconv_serve.http.lingering import Leftovers
from condconv_serve.http.timer import Timer
from condconv_serve.http.transport import AnswerTransport
from condconv_serve.http.upgrade import without_wish
from condconv_serve.http.uvicorn_members import check_uvicorn
from condconv_serve.telemetry.metrics import Metrics

LAST_CALL_SECONDS = 0.3
"""How long connections without a request stay open once the server takes no new ones: one may be on its way."""
_REFUSAL_SECONDS = 1.0
_NOT_HTTP = "This is no valid HTTP/1.1 request."


def guarded_protocol(limits: ConnectionLimits, metrics: Metrics, *, renderer_of: RendererOf) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`.

    Args:
        limits: of each connection, and of their number.
        metrics: counts what is refused.
        renderer_of: finds what makes the answers that no application can give, such as for malformed headers.

    Raises:
        ConfigurationError: this version of uvicorn lacks something that the guard replaces, so the guard would not
            work.
    """
    check_uvicorn(GuardedProtocol)
    made = partial(GuardedProtocol, limits=limits, metrics=metrics, renderer_of=renderer_of, others=Connections())
    return cast(type[asyncio.Protocol], made)


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    While no request is being answered, a deadline runs until headers are complete. It starts when the connection opens,
    and with a request's first byte. How long a connection may be idle between requests is uvicorn's
    `timeout_keep_alive`. If a request is answered before its body is here, the rest is read and thrown away.

    Every public method replaces one of uvicorn's: those of an asyncio protocol, the callbacks of the parser, and three
    of uvicorn's own. `check_uvicorn` sees that they exist.
    """

    def __init__(
        self,
        *args: Any,
        limits: ConnectionLimits,
        metrics: Metrics,
        renderer_of: RendererOf,
        others: Connections[GuardedProtocol],
        **kwargs: Any,
    ) -> None:
        """Prepare for one connection. A server's connections share `others`; the other arguments are uvicorn's."""
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._metrics = metrics
        self._renderer_of = renderer_of
        self.url = b""  # as far as it is known
        self._others = others
        self._leftovers = Leftovers(limits, self.loop, gauge=metrics.lingering_connections)
        self._header_timer = Timer(self.loop)
        self._abort_timer = Timer(self.loop)
        self._header_bytes = 0
        self._receiving = False
        self._running: RequestResponseCycle | None = None
        self._closing = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline, or refuse."""
        self._wire = AnswerTransport(transport, self.loop, lingers=self._lingers)
        super().connection_made(self._wire)
        if self._limits.exceeded_by(len(self.connections)):
            self._make_room()
        if self._limits.exceeded_by(len(self.connections)):
            self._refuse()
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks, and tell the request that is being answered."""
        super().connection_lost(exc)
        self._limits.elsewhere(len(self.connections))
        self._stop_header_timer()
        self._abort_timer.stop()
        self._stop_lingering()
        self._others.discard(self)
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells only the newest request, which may wait behind this one.
            self._running.disconnected = True
            self._running.message_event.set()
        # What points at this connection while it points at that stays until the rare collection of old objects.
        self.pipeline.clear()
        self._wire.lost()

    def data_received(self, data: bytes) -> None:
        """Parse what comes, unless the connection is ending."""
        self._others.idle.pop(self, None)
        if self._leftovers.reading:
            self._leftovers.add(len(data))
        if self._closing:
            return
        if self in self._others.refused:
            self.url = target_in(data)
            self._fail(
                TooManyConnections(
                    f"All {self._limits.max_connections} connections that are allowed are in use.",
                    retry_after=_REFUSAL_SECONDS,
                )
            )
            return
        if not self._answering() and not self._leftovers.reading:
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
        self._abort_timer.start(self._limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read something."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._abort_timer.stop()

    # What the parser tells

    def on_message_begin(self) -> None:
        """A request's first byte is here."""
        self._unset_keepalive_if_required()
        self._others.idle.pop(self, None)
        super().on_message_begin()
        self._header_bytes = self._header_bytes or 1  # it came together with the end of the request before
        self._start_header_timer()

    def on_headers_complete(self) -> None:
        """The headers are here; from now on the application decides how long to wait."""
        check_host(self.headers, self.parser.get_http_version())
        if self.parser.should_upgrade():
            return  # they come again without the wish
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests before their answers")
        self._stop_header_timer()
        self._header_bytes = 0
        self._receiving = True
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
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
        self._receiving = False
        self._stop_lingering()
        super().on_message_complete()
        if not self._answering() and not self._closing and not self.transport.is_closing():
            # It was answered before its body had come, which stopped the clock of idle connections.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            self._others.idle[self] = None

    # What uvicorn tells

    def on_response_complete(self) -> None:
        """Go on to the next request, or wait for the client to read the last answer."""
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.transport.is_closing():
            if not self._leftovers.reading:
                self._abort_timer.start(self._limits.write_timeout, self.transport.abort)
        elif not self._closing and not self._answering():
            if self._receiving:
                self._unset_keepalive_if_required()
                self._linger()
            elif not self._header_bytes:
                self._others.idle[self] = None

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection ends."""
        self._close()

    def shutdown(self) -> None:
        """The server is about to end; a request that is on its way already is still answered."""
        self._leftovers.hurry()
        if (time_left := self.config.timeout_graceful_shutdown) is not None:
            self.loop.call_later(max(time_left - LAST_CALL_SECONDS, 0), self._abort_if_answered)
        if self._answering():
            super().shutdown()
        else:
            self.loop.call_later(LAST_CALL_SECONDS, self._end)

    def _end(self) -> None:
        if self._answering() or self._leftovers.reading:
            super().shutdown()
        elif self._header_bytes and not self._closing:
            self._fail(Draining("The service is shutting down, and the headers are still incomplete.", retry_after=1.0))
        else:
            self._close()

    def _abort_if_answered(self) -> None:
        """Wait no longer, when the server's time is all but over: uvicorn would log an error."""
        if self.transport.is_closing():
            self.transport.abort()

    # Parsing

    def _parse(self, data: bytes) -> None:
        """Parse as uvicorn does, but go on if a request asks for another protocol: this server speaks no other.

        The parser takes everything after such a request's headers for the other protocol, and uvicorn drops it.
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
                    head = without_wish(self.parser, self.url, self.headers)
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
                    self.parser.feed_data(head)
        except httptools.HttpParserError as error:
            wrong = "The body is not encoded as the headers say." if self._is_receiving() else _NOT_HTTP
            self._end_message(MalformedRequest(fault_of(error) or wrong))

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_receiving(self) -> bool:
        cycle = self.cycle
        return self._answering() and cycle.more_body and not cycle.response_started and not self.pipeline

    # Deadlines

    def _start_header_timer(self) -> None:
        if not self._header_timer.running and not self._closing:
            self._header_timer.start(self._limits.header_timeout, self._headers_are_late)
            self._others.heads[self] = self.loop.time()

    def _stop_header_timer(self) -> None:
        self._header_timer.stop()
        self._others.heads.pop(self, None)

    def _headers_are_late(self) -> None:
        self._others.heads.pop(self, None)
        if self._answering():  # pipelined behind a request that we are slow with ourselves
            self._start_header_timer()
            return
        error = RequestTimeout(f"The headers were incomplete after {self._limits.header_timeout:g} seconds.")
        if self._header_bytes:
            self._fail(error)
        else:  # browsers open connections ahead of need and don't expect an answer on them
            self._metrics.rejected.labels(error.slug, "").inc()
            self._close()

    # Bytes after their answer

    def _lingers(self) -> bool:
        """Whether the client may be sending, when the connection is to be closed; then read on."""
        if not (self._closing or self._receiving or self.pipeline or self._header_bytes):
            return False
        self._closing = True
        self._stop_header_timer()
        self._abort_timer.stop()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self._linger()
        return True

    def _linger(self) -> None:
        self._leftovers.begin(is_sent=self._is_sent, on_end=self._leave)
        if self not in self._others.refused:
            self._others.lingering.setdefault(self)

    def _stop_lingering(self) -> None:
        self._leftovers.stop()
        self._others.lingering.pop(self, None)

    def _is_sent(self) -> bool:
        return not self.transport.get_write_buffer_size()

    def _leave(self) -> None:
        """Wait no longer for leftovers, nor for a client that doesn't read its answer."""
        self._stop_lingering()
        if self._is_sent():
            self._close()
        else:
            self.transport.abort()

    # Refusals

    def _make_room(self) -> None:
        """Close another connection: whoever keeps connections for later must not keep others out."""
        before = self.loop.time() - self._limits.head_grace
        heads = (other for other, since in self._others.heads.items() if since <= before and not other._answering())
        if other := self._others.least_needed(heads):
            self.connections.discard(other)
            if other._leftovers.reading:
                other._leave()
            else:
                other._close()

    def _refuse(self) -> None:
        """Answer once a request comes, since a client that is still sending would not read an earlier answer."""
        self.connections.discard(self)
        self._limits.elsewhere(len(self.connections))
        refused = self._others.refused
        if len(refused) >= REFUSED_AT_ONCE:
            answered = next((other for other in refused if other._closing), None)
            if answered is None:
                self._metrics.rejected.labels(TooManyConnections.slug, "").inc()
                self._closing = True
                self.transport.abort()
                return
            del refused[answered]
            answered._leave()
        refused[self] = None
        self._abort_timer.start(_REFUSAL_SECONDS, self.transport.abort)

    def _end_message(self, error: ServiceError) -> None:
        """Take nothing more from a client whose request can't be read; it is answered if none before it waits."""
        if self._leftovers.reading:  # what they belong to has its answer
            self.transport.close()
        elif self._is_receiving():
            self._fail(error)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self._answering():  # a request before, which still gets its answer
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
        self.transport.write(last_answer(error, self._renderer_of(self.url), headers=self.server_state.default_headers))
        self._metrics.rejected.labels(error.slug, "").inc()
        self._closing = True
        self.transport.close()

    def _close(self) -> None:
        self._closing = True
        self._others.idle.pop(self, None)
        self._stop_header_timer()
        self._wire.end()
        # Closing waits for the client to read what has been written.
        self._abort_timer.start(self._limits.write_timeout, self.transport.abort)
