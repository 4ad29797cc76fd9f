"""Runs batches: from rows of one model to the named tensors of each row, on a free stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from condconv_serve.domain import Row, ServedModel, Tensors, rows_of
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

    async def __call__(self, model: ServedModel, rows: Sequence[Row]) -> Sequence[Tensors]:
        """Compute rows `[image_size, image_size, 3]` in one batch: the tensors of each, in order.

        Raises:
            EngineStalled: the engine hung. OutOfMemory: it found no memory. What else the engine raises.
        """
        lease, started = self._hold(model), time.monotonic()

        def compute(stream: int) -> Sequence[Tensors]:
            with lease:
                return rows_of(model.engine(np.stack(rows), stream))

        outputs = await self._streams.run(compute)
        self._tallies.batch(model.name, model.version, rows=len(rows), seconds=time.monotonic() - started)
        return outputs
