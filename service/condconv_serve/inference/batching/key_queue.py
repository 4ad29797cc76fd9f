"""The waiting rows of one key, by priority."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

from condconv_serve.inference.batching.policy import Priority, rank, urgency

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Result = TypeVar("Result")


Result_contra = TypeVar("Result_contra", contravariant=True)


class Receiver(Protocol[Result_contra]):
    """Who is told how a row ended, once: a future that somebody awaits, or the like. It must not raise."""

    def done(self) -> bool:
        """Whether it was told, or has gone."""
        ...

    def set_result(self, result: Result_contra, /) -> None:
        """The row was computed."""
        ...

    def set_exception(self, error: Exception, /) -> None:
        """It was not."""
        ...


@dataclass(slots=True, eq=False)
class QueuedRow(Generic[Key, Row, Result]):
    """A row with its receiver; times are on the monotonic clock, in seconds."""

    key: Key
    row: Row
    receiver: Receiver[Result]
    enqueued_at: float
    deadline: float = math.inf
    priority: Priority = Priority.NORMAL


class KeyQueue(Generic[Key, Row, Result]):
    """The waiting rows of one key.

    Attributes:
        turn: number of the batch that was last taken from it. Among equally urgent keys the lowest is next.
        served_at: when that was, on the monotonic clock in seconds.
    """

    def __init__(self, turn: int) -> None:
        """Start empty. Its last batch counts as number `turn`."""
        self.turn = turn
        self.served_at = -math.inf
        # Ordered: the most urgent first, and rows leave from the front, and from anywhere when their senders go.
        self._rows: dict[Priority, OrderedDict[QueuedRow[Key, Row, Result], None]] = {
            p: OrderedDict() for p in Priority
        }

    def __len__(self) -> int:
        """How many rows wait."""
        return sum(map(len, self._rows.values()))

    def __contains__(self, row: QueuedRow[Key, Row, Result]) -> bool:
        """Whether a row waits here."""
        return row in self._rows[row.priority]

    def count(self, at_least: Priority) -> int:
        """How many rows are at least this urgent."""
        return sum(map(len, islice(self._rows.values(), at_least + 1)))

    def heads(self) -> list[QueuedRow[Key, Row, Result]]:
        """The oldest row of each priority that has any."""
        return [next(iter(rows)) for rows in self._rows.values() if rows]

    def urgency(self, now: float, ageing: float) -> int:
        """The urgency of its most urgent row.

        Waiting counts from the last batch at the earliest: a flood of rows for one key must not pass other keys.
        """
        return min(
            urgency(row.priority, waited=now - max(row.enqueued_at, self.served_at), ageing=ageing)
            for row in self.heads()
        )

    def add(self, row: QueuedRow[Key, Row, Result]) -> None:
        """Append a row."""
        self._rows[row.priority][row] = None

    def remove(self, row: QueuedRow[Key, Row, Result]) -> None:
        """Take out a row that waits here."""
        del self._rows[row.priority][row]

    def pop(self, ageing: float) -> QueuedRow[Key, Row, Result]:
        """Take out the row that is next; there must be one."""
        heads = self.heads()
        first = heads[0]
        if len(heads) > 1:
            first = min(heads, key=lambda row: rank(row.priority, enqueued_at=row.enqueued_at, ageing=ageing))
        self.remove(first)
        return first
