"""The engine process's end of the connection with one front: its requests, its calls, its shared memory, its leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from condconv_serve.cluster.workers.arena import Arena
from condconv_serve.cluster.workers.front_requests import Asked, Unasked, logged_as
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import (
    Call,
    Cancel,
    Ended,
    ModelsChanged,
    NewArena,
    NewModel,
    Open,
    Raised,
    ReadinessReport,
    Released,
    Returned,
    RowDone,
    RowFailed,
    RowMade,
    Tell,
    Welcome,
)
from condconv_serve.cluster.workers.packing import pack, unpack
from condconv_serve.domain import MadeRow, RowAnswer, RowSource, ServedModel
from condconv_serve.domain.facts import Deadline
from condconv_serve.errors import DeadlineExceeded, ServiceError, let_go, unexpected_error
from condconv_serve.inference.batching import Priority
from condconv_serve.inference.open_request import Outcome
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.serving.leases import Lease
from condconv_serve.serving.served import LeasedModels, Served

Callee = Callable[..., Any]
"""Returns a result, or something to await."""
Calls = Mapping[str, Callee]
LATE_SECONDS = 5.0
"""How long after a request's deadline its front may still send rows. It stops in time by itself, unless it hangs."""
logger = logging.getLogger(__name__)


class FrontSession:
    """Answers one front. All that a front sends goes through the plane of this process, so all is counted here."""

    def __init__(
        self,
        connection: socket.socket,
        plane: InferencePlane,
        models: LeasedModels,
        *,
        slots: int,
        calls: Callable[[FrontSession], Calls],
        on_failure: Callable[[], None],
        on_close: Callable[[FrontSession], None],
    ) -> None:
        """Welcome a front.

        Args:
            connection: with the front.
            plane: computes.
            models: what is served.
            slots: how many slots each of the front's arenas should have.
            calls: makes the table of what this front may call.
            on_failure: called before a front hears that a row has failed.
            on_close: called when the front has gone.
        """
        self._plane = plane
        self._models = models
        self._on_failure = on_failure
        self._on_close = on_close
        self._arenas: list[Arena] = []
        self._held: dict[ServedModel, tuple[int, Lease]] = {}
        self._by_number: dict[int, ServedModel] = {}
        self._requests: dict[int, Unasked | Asked] = {}
        self._tasks: dict[int, asyncio.Future[Any]] = {}
        self._told: set[asyncio.Task[None]] = set()
        self._cleaning: asyncio.Task[None] | None = None  # the loop keeps no task alive
        self._numbers = 0
        self.closing = contextlib.AsyncExitStack()
        """What is to be undone when the front has gone."""
        self._calls = calls(self)
        self._link = Link(connection, on_message=self._take, on_close=self._end, pack=pack, unpack=unpack)
        self._link.send(Welcome(slots))

    def tell_models(self, served: Served) -> None:
        """Tell the front what is served. From now on each copy stays loaded until the front says that it may go."""
        new = dict[int, NewModel]()
        models = dict[str, dict[str, int]]()
        for name, versions in served.models.items():
            for version, model in versions.items():
                models.setdefault(name, {})[version] = self._hold(model, new)
        self._link.send(ModelsChanged(models, new, served.aliases, served.unserved, served.default))

    def tell_ready(self, state: ReadinessReport) -> None:
        """Tell the front whether requests can be answered."""
        self._link.send(state)

    def end_late(self) -> None:
        """End the requests that the front should have given up some time ago: it hangs. Called now and then."""
        before = time.monotonic() - LATE_SECONDS
        for number, request in tuple(self._requests.items()):
            if request.deadline < before:
                request.late = True
                self._cancel(number)

    def beat(self, state: ReadinessReport) -> None:
        """Show the front that this process runs, unless the front itself doesn't."""
        if not self._link.stalls:
            self._link.send(state)

    def close(self) -> None:
        """End the connection."""
        self._link.close()

    def model(self, number: int) -> ServedModel:
        """The copy of a version with a number.

        Raises:
            ValueError: there is none, or the front has let it go.
        """
        try:
            return self._by_number[number]
        except KeyError:
            raise ValueError(f"There is no model {number}.") from None

    def _hold(self, model: ServedModel, new: dict[int, NewModel]) -> int:
        if model not in self._held:
            self._numbers += 1
            self._held[model] = self._numbers, self._models.hold(model)
            self._by_number[self._numbers] = model
            new[self._numbers] = NewModel(model.info, model.computed_by, model.crop_jpeg is not None)
        return self._held[model][0]

    def _take(self, message: Any, link: Link) -> None:
        match message:
            case RowMade():
                if request := self._requests.get(message.id):
                    made = self._made(message)
                    if message.placed is not None:
                        request.slots[message.row] = message.arena, message.slot
                    request.take(message.row, made)
            case Open():
                self._open(message)
            case RowFailed():
                if request := self._requests.get(message.id):
                    request.take(message.row, message.error)
            case Cancel():
                self._cancel(message.id)
            case Call():
                self._call(message)
            case Tell():
                self._tell(message)
            case NewArena():
                file = link.take_file()
                try:
                    self._arenas.append(Arena(file, slot_bytes=message.slot_bytes, slots=message.slots))
                finally:
                    os.close(file)
            case Released():
                _, lease = self._held.pop(self._by_number.pop(message.model))
                lease.release()
            case _:
                raise ValueError(f"{type(message).__name__} is nothing that a front sends.")

    def _start(self, number: int, work: Awaitable[Any], done: Callable[[asyncio.Future[Any]], object]) -> None:
        """Begin what a front may cancel. `done` sends its end, also if it was cancelled before it began."""
        task = self._tasks[number] = asyncio.ensure_future(work)
        task.add_done_callback(done)

    def _cancel(self, number: int) -> None:
        """The caller of a request or of a call has left; it may have ended already."""
        request = self._requests.get(number)
        if isinstance(request, Unasked):
            request.close()
            self._ended(request, ())
        elif task := self._tasks.get(number):
            task.cancel()

    def _open(self, message: Open) -> None:
        model = self.model(message.model)
        if message.unasked:
            self._open_unasked(message, model)
            return
        number = message.id
        request = self._requests[number] = Asked(number, message.deadline, self._link)

        def end(task: asyncio.Future[Ended]) -> None:
            del self._tasks[number]
            self._end_request(request, Ended(number) if task.cancelled() else task.result())

        self._start(number, self._answer(message, request, model), end)

    def _open_unasked(self, message: Open, model: ServedModel) -> None:
        """Let in a request whose rows come by themselves: there is nothing to await, so it needs no task."""
        request = self._requests[message.id] = Unasked(message, self._ended)
        try:
            request.rows = self._plane.open(
                model,
                len(message.digests),
                request,
                priority=Priority(message.priority),
                deadline=Deadline(message.deadline, by=message.by),
                context=request.log,
            )
        except ServiceError as error:
            self._end_request(request, Ended(message.id, error=let_go(error)))

    def _ended(self, request: Unasked, outcomes: Sequence[Outcome]) -> None:
        try:
            ended = self._outcomes(request, outcomes)
        except Exception:
            logger.exception("the answers of a request can't be told")
            ended = Ended(request.number, error=unexpected_error())
        self._end_request(request, ended)

    def _end_request(self, request: Unasked | Asked, ended: Ended) -> None:
        del self._requests[request.number]
        error = DeadlineExceeded("The answer was not ready by the deadline.") if request.late else ended.error
        outcomes = () if request.late else ended.outcomes
        self._link.send(Ended(request.number, outcomes, error, self._plane.spare_rows))

    async def _answer(self, message: Open, request: Asked, model: ServedModel) -> Ended:
        try:
            with self._models.hold(model), logged_as(message.logged):
                found = await self._plane.infer_each(
                    model,
                    [RowSource(partial(request.make, index), digest) for index, digest in enumerate(message.digests)],
                    priority=Priority(message.priority),
                    deadline=Deadline(message.deadline, by=message.by),
                    cache=message.cache,
                )
            return self._outcomes(request, found)
        except ServiceError as error:
            return Ended(message.id, error=let_go(error))
        except Exception:
            logger.exception("a request of %s/%s met an unexpected error", model.name, model.version)
            return Ended(message.id, error=unexpected_error())

    def _outcomes(self, request: Unasked | Asked, found: Sequence[Outcome]) -> Ended:
        return Ended(request.number, tuple(self._outcome(request, index, row) for index, row in enumerate(found)))

    def _outcome(self, request: Unasked | Asked, index: int, row: RowAnswer | ServiceError) -> RowDone | ServiceError:
        if isinstance(row, ServiceError):
            self._on_failure()
            return let_go(row)
        arena, slot = request.slots.get(index, (0, -1))
        layout = self._arenas[arena].write(slot, row.tensors) if slot >= 0 else None
        timings = row.timings
        return RowDone(
            timings.decode,
            timings.queue,
            timings.inference,
            timings.total,
            row.batch_size,
            row.placement,
            timings.cache,
            layout,
            dict(row.tensors) if layout is None else None,
        )

    def _made(self, message: RowMade) -> MadeRow:
        if message.placed is None:
            if message.array is None:
                raise ValueError("A row without pixels.")
            return MadeRow(message.array, message.seconds, message.placement, message.copies)
        row = self._arenas[message.arena].array(message.slot, message.placed)
        row.flags.writeable = False
        return MadeRow(row, message.seconds, message.placement, message.copies)

    def _call(self, message: Call) -> None:
        """Answer a call: at once if nothing has to be awaited, which spares the loop a task."""
        try:
            found = self._calls[message.name](*message.arguments)
        except Exception as error:
            self._link.send(Raised(message.id, self._told_of(error, message.name)))
            return
        if not isinstance(found, Awaitable):
            self._link.send(Returned(message.id, found))
            return

        def end(task: asyncio.Future[Any]) -> None:
            del self._tasks[message.id]
            if task.cancelled():
                return
            error = task.exception()
            answer = (
                Raised(message.id, self._told_of(error, message.name)) if error else Returned(message.id, task.result())
            )
            self._link.send(answer)

        self._start(message.id, found, end)

    def _told_of(self, error: BaseException, name: str) -> ServiceError:
        if isinstance(error, ServiceError):
            return let_go(error)
        logger.error("%s, which a front has called, met an unexpected error", name, exc_info=error)
        return unexpected_error()

    def _tell(self, message: Tell) -> None:
        task = asyncio.get_running_loop().create_task(self._run(message))
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _run(self, message: Tell) -> None:
        try:
            await self._calls[message.name](*message.arguments)
        except Exception:
            logger.exception("%s, which a front has told, met an unexpected error", message.name)

    def _end(self, link: Link) -> None:
        self._on_close(self)
        self._cleaning = asyncio.get_running_loop().create_task(self._clean_up())

    async def _clean_up(self) -> None:
        for number in tuple(self._requests):
            self._cancel(number)
        tasks = [*self._tasks.values(), *self._told]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, lease in self._held.values():
            lease.release()
        self._held.clear()
        self._arenas.clear()
        await self.closing.aclose()
