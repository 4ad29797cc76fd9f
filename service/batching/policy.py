"""The batcher's decisions as pure functions."""

from __future__ import annotations


def rows_to_take(waiting: int, *, free_streams: int, max_batch_size: int) -> int:
    """How many waiting rows a free stream takes.

    All that fit, unless other streams are free too: then an equal share, since two half batches side by side are done
    sooner than one whole.

    Args:
        waiting: rows that could ride together, at least 1.
        free_streams: streams that wait for work, this one included.
        max_batch_size: most rows per batch.
    """
    share = -(-waiting // max(free_streams, 1))
    return min(share, max_batch_size)
