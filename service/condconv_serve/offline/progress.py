"""A progress bar for calls with many images: on a terminal and in notebooks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_FROM = 8
"""With fewer images than this a bar would only flicker."""
_SECONDS_BETWEEN = 0.1


class ProgressBar:
    """Shows how many images are done. Use as a context manager."""

    def __init__(self, what: str, *, wanted: bool | None = None, console: Console | None = None) -> None:
        """Prepare.

        Args:
            what: what is being done, such as "classifying".
            wanted: whether to show it; None: where somebody looks at it, and from `SHOWN_FROM` images on.
            console: what else is printed beside it goes there; stderr if None.
        """
        console = console or Console(stderr=True, emoji=False)
        self._wanted = wanted
        self._possible = wanted is not False and (wanted is True or console.is_terminal or console.is_jupyter)
        self._shown: _InTerminal | _InNotebook | None = None
        self._make = (lambda: _InNotebook(what)) if console.is_jupyter else (lambda: _InTerminal(what, console))
        self._next = 0.0
        self._last: tuple[int, int | None] = (0, None)

    def update(self, done: int, total: int | None) -> None:
        """Show that so many of so many images are done; `total` is None if nobody knows."""
        if not self._possible or (self._wanted is None and (done if total is None else total) < SHOWN_FROM):
            return
        if self._shown is None:
            self._shown = self._make()
        self._last = done, total
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN
            self._shown.show(done, total)

    def __enter__(self) -> ProgressBar:
        """Show it, once there is something to show."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it as it is in the end."""
        if self._shown is None:
            return
        done, total = self._last
        self._shown.show(done, done if total is None and error is None else total)
        self._shown.end()


class _InTerminal:
    def __init__(self, what: str, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task(what, total=None)
        self._progress.start()

    def show(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def end(self) -> None:
        self._progress.stop()


@dataclass(frozen=True)
class _Bar:
    """A notebook shows the HTML; whatever shows no HTML shows the text."""

    what: str
    done: int
    total: int | None

    def __repr__(self) -> str:
        return f"{self.what} {self.done}" + ("" if self.total is None else f" of {self.total}")

    def _repr_html_(self) -> str:
        known = "" if self.total is None else f" value='{self.done}' max='{self.total}'"
        return f"<progress{known}></progress> {self!r}"


class _InNotebook:
    """IPython's own display, which needs no widgets."""

    def __init__(self, what: str) -> None:
        from IPython import display

        show: Any = display.display  # it has no types
        self._what = what
        self._handle: Any = show(_Bar(what, 0, None), display_id=True)

    def show(self, done: int, total: int | None) -> None:
        self._handle.update(_Bar(self._what, done, total))

    def end(self) -> None:
        """It stays in the cell as it is."""
