"""A front's end of the connection with one engine process: open requests, calls, and the shared memory of rows."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import math
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from condconv_serve.cluster.workers.arena import OwnArena, Placed, answer_bytes, slot_size
from condconv_serve.cluster.workers.known_room import KnownRoom
from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import (
    Call,
    Cancel,
    Ended,
    Logged,
    Make,
    ModelsChanged,
    NewArena,
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
from condconv_serve.cluster.workers.mirrors import MirroredModels, MirroredReadiness
from condconv_serve.cluster.workers.packing import pack, unpack
from condconv_serve.domain import JpegCropper, MadeRow, ModelInfo, Pixels, RowAnswer, RowSource, Timings
from condconv_serve.domain.caching import CacheUse
from condconv_serve.domain.facts import RequestFacts, deadline_by
from condconv_serve.errors import ServiceError, let_go, unexpected_error
from condconv_serve.inference.batching import Priority
from condconv_serve.telemetry.logs import current_request

CROP = "crop_jpeg"
"""The call that decodes a JPEG where the model's own decoder is."""
SILENT_SECONDS = 10.0
"""After so long without a word the engine process hangs, or is stopped: it says something every two seconds."""
_WATCH_SECONDS = 1.0
TRIM_SECONDS = 30.0
TRIM_BYTES = 64 * 2**20
"""Slots that no row has taken for so long lose their memory, and so much at once: that takes some milliseconds."""
logger = logging.getLogger(__name__)


class EngineSession:
    """Talks to one engine process, from its first word until one of both ends."""

    def __init__(
        self,
        connection: socket.socket,
        models: MirroredModels,
        readiness: MirroredReadiness,
        *,
        on_close: Callable[[EngineSession], None],
    ) -> None:
        """Start to listen to it.

        Args:
            connection: with the engine process.
            models: gets what it serves.
            readiness: gets whether it is ready.
            on_close: called when it has gone, before anybody hears of that.
        """
        self._models = models
        self._readiness = readiness
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._slots = 0
        self._arenas: list[OwnArena] = []
        self._arena_of: dict[int, int] = {}
        self._slot_bytes: dict[int, int] = {}
        self._requests: dict[int, _Request] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self.room = KnownRoom()
        self._trimming: asyncio.TimerHandle | None = None
        self._heard_at = math.inf
        self._watching = self._loop.call_later(_WATCH_SECONDS, self._watch, self._loop.time())
        self._link = Link(connection, on_message=self._take, on_close=self._end, pack=pack, unpack=unpack)

    @property
    def welcomed(self) -> bool:
        """Whether the engine process has said its first word; before that it may import libraries for a while."""
        return self._slots > 0

    def close(self) -> None:
        """End the connection. Requests and calls that are open fail."""
        self._link.close()

    async def infer_each(
        self,
        model: int,
        sources: Sequence[RowSource],
        *,
        priority: Priority,
        deadline: float,
        cache: CacheUse | None = None,
    ) -> list[RowAnswer | ServiceError]:
        """Have the rows of one request computed; each is made when the engine process has room for it, or should have.

        Args:
            model: its number in the engine process.
            sources: make the rows.
            priority: how urgent they are.
            deadline: when the caller stops waiting, on the monotonic clock in seconds.
            cache: how it may use the response cache.

        Raises:
            ServiceError: the request as a whole was refused, or the engine process has gone.
        """
        request = _Request(model, sources, self._loop.create_future(), contextvars.copy_context())
        number = next(self._numbers)
        self._requests[number] = request
        # What the cache may answer needn't be made.
        unasked = cache is None and self.room.take(len(sources))
        self._link.send(
            Open(
                number,
                model,
                tuple(source.digest for source in sources),
                int(priority),
                float(deadline),
                deadline_by(deadline),
                _logged(current_request()),
                cache,
                unasked,
            )
        )
        if unasked:
            for index in range(len(sources)):
                self._make(number, index)
        try:
            return await request.done
        except asyncio.CancelledError:
            self._link.send(Cancel(number))  # the slots come back with its end
            raise
        finally:
            for task in request.making:
                task.cancel()

    async def call(self, name: str, *arguments: Any) -> Any:
        """See `RemoteEngine.call`."""
        if self._link.closed:  # threads that decode keep their session: they would wait for ever
            raise self._readiness.gone()
        number = next(self._numbers)
        answer = self._calls[number] = self._loop.create_future()
        self._link.send(Call(number, name, arguments))
        try:
            return await answer
        except asyncio.CancelledError:
            self._link.send(Cancel(number))
            raise
        finally:
            self._calls.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """See `RemoteEngine.tell`."""
        self._link.send(Tell(name, arguments))

    def _watch(self, last: float) -> None:
        """Give up what is open when the engine process hangs, so that callers can go elsewhere."""
        now = self._loop.time()
        self._watching = self._loop.call_later(_WATCH_SECONDS, self._watch, now)
        if now - last > SILENT_SECONDS / 2:  # it is this process that has hung, and what was said lies here unread
            self._heard_at = max(self._heard_at, now)
        if now - self._heard_at < SILENT_SECONDS:
            return
        self._readiness.hangs()
        waiting = {number: request.done for number, request in self._requests.items()} | self._calls
        for number, answer in waiting.items():
            if not answer.done():
                answer.set_exception(self._readiness.gone())
                self._link.send(Cancel(number))

    def _take(self, message: Any, _: Link) -> None:
        self._heard_at = self._loop.time()
        match message:
            case Make():
                self._make(message.id, message.row)
            case Ended():
                self._ended(message)
            case Returned():
                if (answer := self._calls.get(message.id)) and not answer.done():  # its caller may be just leaving
                    answer.set_result(message.value)
            case Raised():
                if (answer := self._calls.get(message.id)) and not answer.done():
                    answer.set_exception(message.error)
            case ReadinessReport():
                self._readiness.follow(message)
            case ModelsChanged():
                self._follow_models(message)
            case Welcome():
                self._slots = message.slots
            case _:
                raise ValueError(f"{type(message).__name__} is nothing that an engine process sends.")

    def _make(self, number: int, index: int) -> None:
        request = self._requests[number]
        if not request.done.done():
            work = self._made(number, index, request)
            request.making.add(task := self._loop.create_task(work, context=request.context))
            task.add_done_callback(request.making.discard)

    async def _made(self, number: int, index: int, request: _Request) -> None:
        try:
            made = await request.sources[index].make()
            if number in self._requests:  # else its slots would never come back
                self._send_row(number, index, request, made)
        except ServiceError as error:
            self._link.send(RowFailed(number, index, let_go(error)))
        except Exception:
            logger.exception("a row met an unexpected error before it was computed")
            self._link.send(RowFailed(number, index, unexpected_error()))

    def _send_row(self, number: int, index: int, request: _Request, made: MadeRow) -> None:
        row = made.row
        taken = self._take_slot(self._slot_bytes[request.model], row.nbytes)
        if taken is None:  # it goes through the socket
            self._link.send(RowMade(number, index, made.seconds, made.placement, array=row, copies=made.copies))
            return
        arena, slot = request.slots[index] = taken
        placed = Placed(row.dtype.str, row.shape, 0)
        self._arenas[arena].array(slot, placed)[...] = row
        self._link.send(RowMade(number, index, made.seconds, made.placement, arena, slot, placed, copies=made.copies))

    def _take_slot(self, slot_bytes: int, needed: int) -> tuple[int, int] | None:
        """An arena and a free slot of it; None for a larger row, for more rows than there should be, or without one."""
        if needed > slot_bytes:
            return None
        try:
            arena = self._arena(slot_bytes)
        except OSError:  # too little memory, or too many open files
            return None
        slot = self._arenas[arena].take()
        return None if slot is None else (arena, slot)

    def _arena(self, slot_bytes: int) -> int:
        if slot_bytes not in self._arena_of:
            arena = OwnArena(slot_bytes=slot_bytes, slots=self._slots)
            try:
                self._link.send(NewArena(slot_bytes, self._slots), file=arena.file)
            finally:
                arena.close()
            self._arena_of[slot_bytes] = len(self._arenas)
            self._arenas.append(arena)
            if self._trimming is None:
                self._trimming = self._loop.call_later(TRIM_SECONDS, self._trim)
        return self._arena_of[slot_bytes]

    def _trim(self) -> None:
        for arena in self._arenas:
            arena.trim(TRIM_BYTES)
        self._trimming = self._loop.call_later(TRIM_SECONDS, self._trim)

    def _ended(self, message: Ended) -> None:
        request = self._requests[message.id]
        self.room.answered(message.spare_rows)
        if message.error is not None:
            self.room.refused()
        if not request.done.done():
            if message.error is not None:
                request.done.set_exception(message.error)
            else:
                found = [self._answer(request, index, row) for index, row in enumerate(message.outcomes)]
                request.done.set_result(found)
        del self._requests[message.id]
        for arena, slot in request.slots.values():
            self._arenas[arena].give_back([slot])

    def _answer(self, request: _Request, index: int, row: RowDone | ServiceError) -> RowAnswer | ServiceError:
        if isinstance(row, ServiceError):
            return row
        if row.layout is not None:
            arena, slot = request.slots[index]
            tensors = self._arenas[arena].read(slot, row.layout)
        else:
            tensors = dict(row.tensors or {})
        return RowAnswer(
            tensors=tensors,
            timings=Timings(
                decode=row.decode, queue=row.queue, inference=row.inference, total=row.total, cache=row.cache
            ),
            batch_size=row.batch_size,
            placement=row.placement,
        )

    def _follow_models(self, message: ModelsChanged) -> None:
        def release(number: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._link.send, Released(number))

        for number, new in message.new.items():
            self._slot_bytes[number] = slot_size(needed_bytes(new.info))
        self._models.follow(message, self, on_release=release, cropper_of=self._cropper)

    def _cropper(self, model: int) -> JpegCropper:
        """Decodes JPEGs where the model's own decoder is. It is called on a thread."""

        def crop(data: bytes, left: int, top: int, side: int) -> Pixels | None:
            asked = self.call(CROP, model, data, left, top, side)
            found: Pixels | None = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
            return found

        return crop

    def _end(self, _: Link) -> None:
        self._on_close(self)
        self._watching.cancel()
        if self._trimming is not None:
            self._trimming.cancel()
        for request in self._requests.values():
            if not request.done.done():
                request.done.set_exception(self._readiness.gone())
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._readiness.gone())
        self._requests.clear()


class _Request:
    """One request, until the engine process has ended it."""

    def __init__(
        self,
        model: int,
        sources: Sequence[RowSource],
        done: asyncio.Future[list[RowAnswer | ServiceError]],
        context: contextvars.Context,
    ) -> None:
        self.model = model
        self.sources = sources
        self.done = done
        self.context = context
        self.making: set[asyncio.Task[None]] = set()
        self.slots: dict[int, tuple[int, int]] = {}
        """Arena and slot of each row that has been sent in one."""


def _logged(facts: RequestFacts | None) -> Logged | None:
    if facts is None:
        return None
    return Logged(facts.request_id, facts.trace.trace_id, facts.trace.span_id, facts.trace.sampled)


def needed_bytes(info: ModelInfo) -> int:
    """Bytes of a slot that holds a row of a model, and its answer."""
    row = info.preprocessing.image_size**2 * 3 * np.dtype(info.preprocessing.row_type).itemsize
    return max(row, answer_bytes({output.name: (output.shape, output.dtype) for output in info.outputs}))
