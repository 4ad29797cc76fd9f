"""Tells when the model store may have changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from watchfiles import awatch

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.5


async def changes(
    store: Path,
    *,
    interval: float,
    debounce: float = 0.4,
    notifications: Callable[..., AsyncGenerator[Any, None]] = awatch,
) -> AsyncGenerator[None, None]:
    """Yield soon after each change in the store, if the system reports it, and at least every `interval` seconds.

    Once it watches, it yields for whatever has changed before that. It never ends. If the system stops reporting
    changes, only the interval is left, and the log says so once.

    Args:
        store: directory of the model store.
        interval: seconds. Some file systems, such as network ones, don't report changes made elsewhere.
        debounce: seconds. Changes in quick succession are reported together, after this long at most.
        notifications: what tells of changes: `watchfiles.awatch`, or something that is called like it.
    """
    told = False
    clock = asyncio.get_running_loop().time
    while True:
        due = clock()
        try:
            async for found in notifications(
                store,
                debounce=int(debounce * 1000),
                rust_timeout=int(min(interval, _TICK_SECONDS) * 1000),
                yield_on_timeout=True,
                ignore_permission_denied=True,
            ):
                if found or clock() >= due:
                    due = clock() + interval
                    yield
        except Exception as error:  # such as: the system can watch no further directory
            log = logger.debug if told else logger.warning
            log("nothing tells of changes of the model store, so it is looked at every %g s: %s", interval, error)
            told = True
        await asyncio.sleep(interval)
        yield
