"""The batcher's decisions as pure functions."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """How urgent a row is; less is more urgent."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


def urgency(priority: Priority, *, waited: float, ageing: float) -> int:
    """A row's priority now: it rises one step for every `ageing` seconds waited, so that no row waits forever.

    Returns:
        0 for the most urgent rows.
    """
    return max(0, priority - int(waited / ageing))


def rank(priority: Priority, *, enqueued_at: float, ageing: float) -> float:
    """A row's place among the rows of its key; the smallest number is first.

    It ages like `urgency`, but without steps, and it doesn't change over time: a row of the next lower priority comes
    first if it arrived `ageing` seconds earlier.
    """
    return enqueued_at + priority * ageing


def rows_to_take(waiting: int, *, free_streams: int, max_batch_size: int) -> int:
    """How many waiting rows a free stream takes: all that fit.

    If other streams are free too, it takes an equal share: two half batches side by side are done sooner than a whole
    one.

    Args:
        waiting: rows that could be one batch, at least 1.
        free_streams: streams that wait for work, this one included.
        max_batch_size: most rows per batch.
    """
    share = -(-waiting // max(free_streams, 1))
    return min(share, max_batch_size)
