"""How far a job has come: a line that stays in its place on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0
_SECONDS_ON_TERMINAL = 0.25
_RATE_OF_LAST = 60.0
"""Seconds that the rate is measured over, so that time left follows a server that became slower or faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a job is.

    Attributes:
        seen: photos that were answered or skipped.
        total: how many there are; None if they haven't been counted yet.
        skipped: those of `seen` that an earlier run has answered.
        failed: those that were answered by an error now.
        rate: answers a second.
    """

    seen: int
    total: int | None
    skipped: int
    failed: int
    rate: float

    def __str__(self) -> str:
        """As people read it."""
        parts = [f"{self.seen:,} images" if self.total is None else f"{self.seen:,} of {self.total:,} images"]
        if self.skipped:
            parts.append(f"{self.skipped:,} answered before")
        parts.append(f"{self.failed:,} failed")
        if self.rate > 0:
            parts.append(f"{self.rate:,.1f} a second")
            if self.total is not None:
                parts.append(f"{duration(max(self.total - self.seen, 0) / self.rate)} left")
        return ", ".join(parts)


class Progress:
    """Shows how far a job is. Use as a context manager.

    Photos are counted meanwhile, on a thread of its own.
    """

    def __init__(self, console: Console, count: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare.

        Args:
            console: shows it.
            count: says how many photos there are, which may take long.
            clock: in seconds.
        """
        self._console, self._clock = console, clock
        self._every = _SECONDS_ON_TERMINAL if console.is_terminal else SECONDS_BETWEEN_LINES
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = clock() + self._every
        self._seen = self._skipped = self._failed = 0
        self._recent = deque([(clock(), 0)])
        self._total: int | None = None
        threading.Thread(target=self._count, args=(count,), name="job-count", daemon=True).start()

    def __enter__(self) -> Self:
        """Show it until the block ends."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show it no more."""
        if self._live is not None:
            self._live.stop()

    def skipped(self) -> None:
        """A photo was answered before."""
        self._seen += 1
        self._skipped += 1
        self._show()

    def answered(self, count: int, *, failed: int) -> None:
        """So many photos were answered, some of them by an error."""
        self._seen += count
        self._failed += failed
        self._show()

    def standing(self) -> Standing:
        """How far it is now."""
        now, answered = self._clock(), self._seen - self._skipped
        self._recent.append((now, answered))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_OF_LAST:
            self._recent.popleft()
        began, before = self._recent[0]
        return Standing(
            seen=self._seen,
            total=self._total,
            skipped=self._skipped,
            failed=self._failed,
            rate=(answered - before) / (now - began) if now > began else 0.0,
        )

    def _show(self) -> None:
        if self._clock() < self._next:
            return
        self._next = self._clock() + self._every
        text = Text(str(self.standing()), no_wrap=True, overflow="ellipsis")
        if self._live is not None:
            self._live.update(text, refresh=True)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)

    def _count(self, count: Callable[[], int]) -> None:
        self._total = count()


def duration(seconds: float) -> str:
    """A time as people say it: the two largest units."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"
