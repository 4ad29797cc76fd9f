"""Reading what takes long: in a thread, one at a time, so that the event loop waits for none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class LongReads:
    """Gives long reads their turns. All fronts of a service share one.

    Python runs one thread at a time. Together, reads would not be done sooner, but the event loop would wait for each
    of them in turn: with six at once for half a second.
    """

    def __init__(self) -> None:
        """Nothing is being read yet."""
        self._turn = asyncio.Lock()

    async def run(self, read: Callable[[], Result]) -> Result:
        """Call `read` in a thread when all that came before are done, and return or raise what it does."""
        async with self._turn:
            return await asyncio.to_thread(read)
