"""What every call gets: an id, a place in a trace, a check of its key, a time limit, a count, its error's status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import EOF, AbortError, ServicerContext

from condconv_serve.domain.facts import Deadline, RequestFacts
from condconv_serve.errors import (
    CapacityError,
    DeadlineExceeded,
    Draining,
    MalformedBody,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
    let_go,
    unexpected_error,
)
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.gatekeeper import demand
from condconv_serve.fronts.grpc.messages import check_entries
from condconv_serve.fronts.grpc.metadata import CACHE_CONTROL, REQUEST_ID, TRACEPARENT, readable, secret_of, with_answer
from condconv_serve.fronts.grpc.service import Access, Call, Method, Route
from condconv_serve.fronts.grpc.status import HTTP_STATUS, STATUS, refusal
from condconv_serve.http.cache_control import note_cache_control
from condconv_serve.telemetry.logs import request_logged_as
from condconv_serve.telemetry.requests import BookedRequest, Ending, RequestBook

PLACES_FOR_PROBES = 64
"""How many more calls there may be if they are probes: a full server isn't a broken one."""
_MARGIN_SECONDS = 0.005
"""How much sooner than the client we give up, so that it hears from us why."""

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Handler = Callable[[Any, ServicerContext[Any, Any]], Awaitable[Any]]


class Calls:
    """Answers the calls of one server.

    Attributes:
        stopping: whether streams are to end, as the server takes no more calls.
        ending: whether all calls were given up.
        readers: tasks that go on until then.
    """

    def __init__(self, context: AppContext, *, max_calls: int) -> None:
        """Answer with the parts of `context`, and `max_calls` calls at the same time."""
        self._context = context
        self._books: dict[str, RequestBook] = {}
        self._max_calls = max_calls
        self._open: set[asyncio.Task[Any]] = set()
        self.ending = self.stopping = False
        self.readers: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Read no more of streams; what has come is answered."""
        self.stopping = True
        for task in self.readers:
            task.cancel()

    async def unbooked(self, context: ServicerContext[Any, Any], work: Callable[[], Awaitable[None]]) -> None:
        """Do a call's work that goes on without end. It has a place, but isn't booked.

        Raises:
            AbortError: too many calls are open; for gRPC itself.
        """
        try:
            with self._place():
                await work()
        except TooManyConnections as error:
            said = refusal(error)
            await context.abort(said.code, said.message, said.trailing_metadata)

    async def until_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something until the server takes no more calls."""
        task = asyncio.create_task(work)
        self.readers.add(task)
        if self.stopping:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not self.stopping:
                raise
        finally:
            task.cancel()
            self.readers.discard(task)

    def give_up(self) -> None:
        """Refuse all calls that are still open, since the service ends now."""
        self.ending = True
        for task in self._open:
            task.cancel()

    def unary(self, route: Route, method: Method) -> Handler:
        """What answers the calls of a method. It takes and returns bytes, so that nothing can fail outside of it."""

        async def answer(_: Any, context: ServicerContext[Any, Any]) -> bytes:
            async def work(call: Call) -> bytes:
                await self.let_in(method.access, call)
                if method.before_body is not None:
                    await method.before_body(call)
                data = await self.receive(context)
                if data is None:
                    raise MalformedBody("The call holds no message, or one that is too long or incomplete; send one.")
                found: bytes = (await method.answer(parsed(method.request, data), call)).SerializeToString()
                return found

            return await self.run(context, work, route=route)

        return without_circles(answer)

    async def run(
        self,
        context: ServicerContext[Any, Any],
        work: Callable[[Call], Awaitable[Result]],
        *,
        route: Route,
        count_success: bool = True,
    ) -> Result:
        """Do the work of a call, and book it. Errors end the call with their status.

        Args:
            context: of the call.
            work: what the client waits for.
            route: of the method.
            count_success: whether a call is booked that had no error.
        """
        request, call = self._begin(context, route)
        code = StatusCode.CANCELLED
        with request_logged_as(call.facts):
            try:
                with self._place(more=PLACES_FOR_PROBES if route.quiet else 0):
                    result = await work(call)
                code = StatusCode.OK
                context.set_trailing_metadata(with_answer(call.facts))
                return result
            except AbortError:  # a stream has ended itself
                raise
            except (Exception, asyncio.CancelledError) as error:
                if (known := self.known(error, call, path=route.path)) is None:
                    raise
                code = STATUS[known.slug]
                await refuse(context, known, call.facts)
            finally:
                if count_success or call.facts.slug:
                    close(request, code, route)

    def begin_within(self, call: Call, route: Route, *, request_id: str) -> tuple[BookedRequest, Call]:
        """A request begins that is one of several of a call."""
        book = self._book(route.front)
        request = book.open(request_id=request_id, traceparent=call.metadata.get(TRACEPARENT))
        note_cache_control(request.facts, call.metadata.get(CACHE_CONTROL))
        return request, Call(request.facts, call.metadata, call.ends)

    def identify(self, access: Access, call: Call) -> None:
        """Refuse a call whose key doesn't allow it, without counting it.

        Raises:
            Unauthenticated, Forbidden: why.
        """
        if access != "open":
            self._context.gatekeeper.identify(call.facts, secret=secret_of(call.metadata))
        if access == "admin":
            demand(call.facts, "admin")

    async def let_in(self, access: Access, call: Call) -> None:
        """Refuse a call whose key doesn't allow it, or count it.

        Raises:
            Unauthenticated, Forbidden, RateLimited: why.
        """
        if access == "open":
            return
        await self._context.gatekeeper.admit(call.facts, secret=secret_of(call.metadata))
        if access == "admin":
            demand(call.facts, "admin")

    async def receive(self, context: ServicerContext[Any, Any]) -> bytes | None:
        """The next message of a call; None if there is none.

        Raises:
            RequestTimeout: it was too long in coming. Draining: the service ends before it has come.
        """
        bodies = self._context.bodies
        try:
            async with bodies.waiting_until(asyncio.get_running_loop().time() + bodies.total):
                message = await context.read()
        except TimeoutError as error:
            if bodies.given_up:
                raise Draining(
                    "The service is shutting down, and the message is incomplete.", retry_after=1.0
                ) from error
            raise RequestTimeout(f"The message did not arrive within {bodies.total:g} seconds.") from error
        return None if message is EOF else message

    def known(self, error: BaseException, call: Call, *, path: str) -> ServiceError | None:
        """What the client may see of an error, which is noted in the call's facts; None if the client has gone.

        The error lets go of the request, see `let_go`.
        """
        facts = call.facts
        match error:
            case ServiceError():
                facts.slug = error.slug
                if HTTP_STATUS[STATUS[error.slug]] == 500 and not isinstance(error, CapacityError):
                    logger.error("%s: %s", path, error)
                return let_go(error)
            case asyncio.CancelledError():
                if self.ending:
                    facts.slug = Draining.slug
                    return Draining("The service is shutting down, and no time was left to answer.", retry_after=1.0)
                if call.ends is not None and time.monotonic() >= call.ends:
                    facts.slug, facts.deadline = DeadlineExceeded.slug, call.ends
                return None
            case _:
                logger.error("unexpected error in %s [%s]", path, facts.request_id, exc_info=error)
                facts.slug = facts.outcome = ServiceError.slug
                return unexpected_error()

    def _begin(self, context: ServicerContext[Any, Any], route: Route) -> tuple[BookedRequest, Call]:
        metadata = readable(context.invocation_metadata())
        request = self._book(route.front).open(
            request_id=metadata.get(REQUEST_ID), traceparent=metadata.get(TRACEPARENT), quiet=route.quiet
        )
        note_cache_control(request.facts, metadata.get(CACHE_CONTROL))
        return request, Call(request.facts, metadata, _ends(context))

    def _book(self, front: str) -> RequestBook:
        if front not in self._books:
            metrics, tracer = self._context.metrics, self._context.tracer
            self._books[front] = RequestBook(front=front, metrics=metrics, tracer=tracer)
        return self._books[front]

    @contextmanager
    def _place(self, *, more: int = 0) -> Iterator[None]:
        """One of the places for calls, for the current task; there are `more` than usual."""
        if len(self._open) >= self._max_calls + more:
            raise TooManyConnections(
                f"{self._max_calls} calls are being answered, the most that are allowed.", retry_after=1.0
            )
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            yield
        finally:
            self._open.discard(task)


def without_circles(handler: Handler) -> Handler:
    """A handler that returns where it would end with `AbortError`.

    gRPC keeps that error with the call, and raises it again itself. What it passed through would hold the call.
    """

    async def answer(request: Any, context: ServicerContext[Any, Any]) -> Any:
        try:
            return await handler(request, context)
        except AbortError as error:
            let_go(error)

    return answer


async def refuse(context: ServicerContext[Any, Any], error: ServiceError, facts: RequestFacts) -> NoReturn:
    """End a call with the status of an error.

    Raises:
        AbortError: always, for gRPC itself.
    """
    said = refusal(error)
    await context.abort(said.code, said.message, (*said.trailing_metadata, *with_answer(facts)))


def close(request: BookedRequest, code: StatusCode, route: Route) -> None:
    """Book how a request ended. One that was cancelled since its deadline had passed has missed it."""
    path = route.path
    if code is StatusCode.CANCELLED and request.facts.slug is not None:
        code = STATUS[request.facts.slug]
    service, _, method = path[1:].rpartition("/")
    request.close(
        Ending(
            route=path,
            method="POST",
            code=HTTP_STATUS[code],
            answered=code is not StatusCode.CANCELLED,
            line=f"gRPC {path} {code.name}",
            span=path[1:],
            fields={"method": "POST", "path": path, "status": code.name},
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": code.value[0],
            },
        ),
        quiet=route.quiet,
    )


def parsed(kind: Any, data: bytes) -> Any:
    """A message of some bytes.

    Raises:
        MalformedBody: they are none. BodyTooLarge: it has too many entries.
    """
    try:
        message = kind.FromString(data)
    except DecodeError as error:
        raise MalformedBody(f"The message is no {kind.DESCRIPTOR.full_name}.") from error
    check_entries(message)
    return message


def _ends(context: ServicerContext[Any, Any]) -> Deadline | None:
    """When the client stops waiting. It is a little too soon, so that our answer with the reason comes in time."""
    left = context.time_remaining()
    if left is None:
        return None
    return Deadline(time.monotonic() + left - min(_MARGIN_SECONDS, left / 10), by="caller")
