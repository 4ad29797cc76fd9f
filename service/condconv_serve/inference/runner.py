"""Runs batches: from rows of one model to the named tensors of each row, on a free stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from condconv_serve.domain import Row, ServedModel, Tensors, rows_of
from condconv_serve.errors import InferenceFailed
from condconv_serve.inference.streams import StreamPool
from condconv_serve.telemetry.tally import Tallies


class BatchRunner:
    """What the batcher calls. It holds the model until the batch is done, even if all senders have left by then."""

    def __init__(
        self,
        streams: StreamPool,
        *,
        hold: Callable[[ServedModel], AbstractContextManager[ServedModel]],
        tallies: Tallies | None = None,
    ) -> None:
        """Wire the parts together.

        Args:
            streams: what computes.
            hold: keeps a model loaded for as long as the block lasts.
            tallies: counts each batch by version.
        """
        self._streams = streams
        self._hold = hold
        self._tallies = tallies or Tallies()

    async def __call__(self, model: ServedModel, rows: Sequence[Row]) -> Sequence[Tensors | InferenceFailed]:
        """Compute rows `[image_size, image_size, 3]` in one batch: what `finite_rows` makes of its tensors.

        Raises:
            EngineStalled: the engine hung. OutOfMemory: it found no memory. What else the engine raises.
        """
        lease, started = self._hold(model), time.monotonic()

        def compute(stream: int) -> Sequence[Tensors | InferenceFailed]:
            with lease:
                return finite_rows(model.engine(batch_of(rows), stream))

        outputs = await self._streams.run(compute)
        self._tallies.batch(model.name, model.version, rows=len(rows), seconds=time.monotonic() - started)
        return outputs


def batch_of(rows: Sequence[Row]) -> Row:
    """Rows `[image_size, image_size, 3]` as one array `[N, image_size, image_size, 3]`.

    `numpy.stack` gives the interpreter's lock away for each row, and while the event loop is busy it takes as long as
    `condconv_serve.machine.interpreter` allows to get it back. So rows that are alike are joined at once.
    """
    first = rows[0]
    if all(row.dtype == first.dtype and row.shape == first.shape and row.flags.c_contiguous for row in rows):
        return np.frombuffer(bytearray().join([row.data for row in rows]), first.dtype).reshape(len(rows), *first.shape)
    return np.stack(rows)


def finite_rows(tensors: Tensors) -> Sequence[Tensors | InferenceFailed]:
    """Cut a batch's tensors into those of each row, in order; an error where some of its numbers are not finite."""
    rows = rows_of(tensors)
    if _finite(tensors):  # at once, since for each row alone that takes as long as what else is done for it
        return rows
    problem = "The engine's answer for this image holds numbers that are not finite."
    return [row if _finite(row) else InferenceFailed(problem) for row in rows]


def _finite(tensors: Tensors) -> bool:
    # The sum is finite if all are, and takes one call: each gives the interpreter's lock away, as `batch_of` says.
    return all(np.isfinite(values.sum(dtype=np.float64)) for values in tensors.values())
