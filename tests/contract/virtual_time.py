"""Time as tests need it: what is due comes in its order, however slow the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_A_LITTLE = 1e-6
"""Seconds that a timer rings too late, as timers do: sums of seconds are not exact."""


@contextmanager
def virtual_time() -> Iterator[None]:
    """Let time stand still in the running event loop, except to go on to the next timer when all else is done.

    It is for tasks that wait for nothing outside of their loop, such as threads.
    """
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select, now = selector.select, time.monotonic()

    def go_on(timeout: float | None) -> Any:
        nonlocal now
        if timeout is not None and timeout > 0:
            now += timeout + _A_LITTLE
            timeout = 0
        return select(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selector, "select", go_on)
        patch.setattr(time, "monotonic", lambda: now)
        yield


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be later by so many seconds from now on, so that what was due by then is due now."""
    before = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: before() + seconds)
