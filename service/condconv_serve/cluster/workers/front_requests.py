"""Requests of fronts, as the engine process knows them: whose rows it asks for, or whose rows come by themselves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from condconv_serve.cluster.workers.link import Link
from condconv_serve.cluster.workers.messages import Logged, Make, Open
from condconv_serve.domain import MadeRow
from condconv_serve.domain.facts import RequestFacts
from condconv_serve.domain.trace import TraceContext
from condconv_serve.errors import ServiceError
from condconv_serve.inference.open_request import OpenRequest, Outcome
from condconv_serve.telemetry.logs import request_logged_as


class Unasked:
    """One request of a front that sends its rows by itself."""

    __slots__ = ("_ended", "_logged", "_missing", "_over", "deadline", "late", "number", "rows", "slots")

    def __init__(self, message: Open, ended: Callable[[Unasked, Sequence[Outcome]], None]) -> None:
        """It was opened; `ended` is called when all its rows have their outcomes."""
        self.number = message.id
        self.deadline = message.deadline
        self.late = False
        """Whether its front didn't give it up in time."""
        self.slots: dict[int, tuple[int, int]] = {}
        """Arena and slot of the rows that lie in one."""
        self.rows: OpenRequest | None = None
        self._logged = message.logged
        self._missing = set(range(len(message.digests)))
        self._ended = ended
        self._over = False

    def take(self, index: int, row: MadeRow | ServiceError) -> None:
        """A row has come, or can't be made.

        Raises:
            ValueError: there is no such row, or it came before.
        """
        if index not in self._missing:
            raise ValueError("A row that was not asked for.")
        self._missing.remove(index)
        assert self.rows is not None
        if isinstance(row, ServiceError):
            self.rows.unmade(index, row)
        else:
            self.rows.put(index, row)

    def log(self, log: Callable[[], None]) -> None:
        """Call a function whose lines get the ids of the request."""
        with logged_as(self._logged):
            log()

    def close(self) -> None:
        """Its caller has left."""
        self._over = True
        if self.rows is not None:
            self.rows.close()
        self.rows = None  # both know each other, and garbage would wait long for its collector

    def done(self) -> bool:
        """Whether it has ended; this and the next are what its rows know of it."""
        return self._over

    def set_result(self, outcomes: Sequence[Outcome]) -> None:
        """All its rows have their outcomes."""
        self._over = True
        self.rows = None
        self._ended(self, outcomes)


class Asked:
    """One request of a front that is asked for each row when there is room for it."""

    def __init__(self, number: int, deadline: float, link: Link) -> None:
        """Its rows are asked for over `link`."""
        self.number = number
        self.deadline = deadline
        self.late = False
        """Whether its front didn't give it up in time."""
        self.slots: dict[int, tuple[int, int]] = {}
        """Arena and slot of the rows that lie in one."""
        self._link = link
        self._expected: dict[int, asyncio.Future[MadeRow]] = {}

    async def make(self, index: int) -> MadeRow:
        """Ask the front for a row, and wait for it."""
        expected: asyncio.Future[MadeRow] = asyncio.get_running_loop().create_future()
        self._expected[index] = expected
        self._link.send(Make(self.number, index))
        return await expected

    def take(self, index: int, row: MadeRow | ServiceError) -> None:
        """A row has come, or can't be made.

        Raises:
            ValueError: it was not asked for, or came before.
        """
        expected = self._expected.pop(index, None)
        if expected is None:
            raise ValueError("A row that was not asked for.")
        if expected.done():  # cancelled
            return
        if isinstance(row, ServiceError):
            expected.set_exception(row)
            expected.exception()  # nobody may ever wait for it, and that is no error
        else:
            expected.set_result(row)


def logged_as(logged: Logged | None) -> contextlib.AbstractContextManager[None]:
    """Put a request's ids on what is logged inside the block, if there are any."""
    if logged is None:
        return contextlib.nullcontext()
    trace = TraceContext(trace_id=logged.trace_id, span_id=logged.span_id, sampled=logged.sampled)
    return request_logged_as(RequestFacts(request_id=logged.request_id, trace=trace))
