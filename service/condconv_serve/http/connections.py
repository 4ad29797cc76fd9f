"""A server's connections that wait for something, and which of them makes room for a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=asyncio.Protocol)


@dataclass(slots=True)
class Connections(Generic[Connection]):
    """Connections by what they wait for, those that have waited longest first.

    Attributes:
        refused: those beyond the limit, which wait for their 503, or have it.
        idle: those whose last request has been answered, and on which nothing has come since.
        lingering: those with an answer whose request's body is still coming.
        heads: those whose next request's headers are not complete, and since when.
    """

    refused: dict[Connection, None] = field(default_factory=dict)
    idle: dict[Connection, None] = field(default_factory=dict)
    lingering: dict[Connection, None] = field(default_factory=dict)
    heads: dict[Connection, float] = field(default_factory=dict)

    def discard(self, connection: Connection) -> None:
        """It waits for nothing any more."""
        for waiting in (self.refused, self.idle, self.lingering, self.heads):
            waiting.pop(connection, None)

    def least_needed(self, silent: Iterable[Connection]) -> Connection | None:
        """The connection that makes room; `silent` ones come last. None if there is none."""
        return next(chain(self.idle, self.lingering, silent), None)
