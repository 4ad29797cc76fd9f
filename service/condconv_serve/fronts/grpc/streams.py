"""Streams of independent requests: each is booked as a request of its own, and they are answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from grpc import StatusCode
from grpc.aio import EOF, ServicerContext

from condconv_serve.errors import Draining, RequestTimeout, ServiceError
from condconv_serve.fronts.grpc.calls import Calls, close, parsed, refuse, without_circles
from condconv_serve.fronts.grpc.service import Call, Route, StreamMethod
from condconv_serve.fronts.grpc.status import STATUS
from condconv_serve.telemetry.logs import request_logged_as

MAX_AHEAD = 16
"""Most requests of a stream that are being answered. The next one is read when an answer is out."""

MAX_BYTES_AHEAD = 8 * 2**20
"""Once the requests of a stream that are being answered have so many bytes, the next one is read when one is out."""

_MAX_STEM = 110
"""How much of the stream's id is in those of its requests, which have at most 128 characters."""

StreamHandler = Callable[[Any, ServicerContext[Any, Any]], Awaitable[None]]
_Outcome = tuple[Any, ServiceError | None]


def stream(calls: Calls, route: Route, method: StreamMethod, *, write_timeout: float) -> StreamHandler:
    """What answers the streams of a method.

    Args:
        calls: of the server.
        route: of the method.
        method: answers the requests.
        write_timeout: most seconds that a client may leave an answer unread.
    """

    async def answer(_: Any, context: ServicerContext[Any, Any]) -> None:
        async def work(call: Call) -> None:
            calls.identify(method.access, call)
            await _Stream(calls, context, call, route=route, method=method).run(write_timeout)

        # Its requests count, not the stream. But a stream that is refused as a whole counts as one.
        await calls.run(context, work, route=route, count_success=False)

    return without_circles(answer)


class _Stream:
    def __init__(
        self, calls: Calls, context: ServicerContext[Any, Any], call: Call, *, route: Route, method: StreamMethod
    ) -> None:
        self._calls = calls
        self._context = context
        self._call = call
        self._route = route
        self._method = method
        self._room = asyncio.Semaphore(MAX_AHEAD)
        self._bytes, self._fewer = 0, asyncio.Event()
        self._pending: asyncio.Queue[asyncio.Task[_Outcome] | None] = asyncio.Queue()
        self._answering: set[asyncio.Task[_Outcome]] = set()

    async def run(self, write_timeout: float) -> None:
        """Answer until the client says that nothing more will come, or the service ends."""
        if self._calls.stopping:
            await refuse(self._context, _draining(), self._call.facts)
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._pending.put_nowait(None))
        self._calls.readers.add(reading)
        try:
            while (answering := await self._pending.get()) is not None:
                answer, error = await answering
                if error is not None:
                    await refuse(self._context, error, self._call.facts)
                await self._write(answer, write_timeout)
                self._room.release()
                self._fewer.set()
            if not reading.cancelled():
                reading.result()
            if self._calls.stopping:
                # Nothing is lost, so this counts as no error.
                await refuse(self._context, _draining(), self._call.facts)
        finally:
            self._calls.readers.discard(reading)
            tasks = (reading, *self._answering)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        number = 0
        while await self._room.acquire() and (data := await self._context.read()) is not EOF:
            number += 1
            self._bytes += len(data)
            answering = asyncio.create_task(self._answer(data, number))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
            self._pending.put_nowait(answering)
            while self._bytes > MAX_BYTES_AHEAD:
                self._fewer.clear()
                await self._fewer.wait()

    async def _write(self, answer: Any, write_timeout: float) -> None:
        try:
            async with asyncio.timeout(write_timeout):
                await self._context.write(answer.SerializeToString())
        except TimeoutError as error:
            raise RequestTimeout(f"The client read no answer for {write_timeout:g} seconds.") from error

    async def _answer(self, data: bytes, number: int) -> _Outcome:
        """One request: its answer, or the error with which the stream ends."""
        stem = self._call.facts.request_id[:_MAX_STEM]
        request, call = self._calls.begin_within(self._call, self._route, request_id=f"{stem}-{number}")
        code, message = StatusCode.CANCELLED, None
        with request_logged_as(call.facts):
            try:
                await self._calls.let_in(self._method.access, call)
                message = parsed(self._method.request, data)
                answer = await self._method.answer(message, call)
                code = StatusCode.OK
                return answer, None
            except (Exception, asyncio.CancelledError) as error:
                if (known := self._calls.known(error, call, path=self._route.path)) is None:
                    raise
                code = STATUS[known.slug]
                answer = self._method.failed(known, message, call)
                return answer, None if answer is not None else known
            finally:
                self._bytes -= len(data)
                close(request, code, self._route)


def _draining() -> Draining:
    return Draining("The service is shutting down; open a new stream.", retry_after=1.0)
