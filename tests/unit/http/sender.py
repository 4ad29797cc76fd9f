"""A client that sends what a test gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Sender:
    """Plays the client: gives the chunks, then goes away, and counts how many were taken."""

    def __init__(self, chunks: Sequence[bytes], *, leaves: bool = False) -> None:
        self._chunks = list(chunks)
        self._leaves = leaves
        self.taken = 0

    async def __call__(self) -> dict[str, Any]:
        if self.taken == len(self._chunks):
            return {"type": "http.disconnect"}
        chunk = self._chunks[self.taken]
        self.taken += 1
        more = self._leaves or self.taken < len(self._chunks)
        return {"type": "http.request", "body": chunk, "more_body": more}
