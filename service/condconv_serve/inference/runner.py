"""Runs batches: from rows of one model to the named tensors of each row, on a free stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from condconv_serve.domain import Row, ServedModel, Tensors, rows_of
from condconv_serve.inference.streams import StreamPool


class BatchRunner:
    """What the batcher calls. It holds the model until the batch is done, even if all senders have left by then."""

    def __init__(
        self, streams: StreamPool, *, hold: Callable[[ServedModel], AbstractContextManager[ServedModel]]
    ) -> None:
        """Compute on `streams`; `hold` keeps a model loaded for as long as the block lasts."""
        self._streams = streams
        self._hold = hold

    async def __call__(self, model: ServedModel, rows: Sequence[Row]) -> Sequence[Tensors]:
        """Compute rows `[image_size, image_size, 3]` in one batch: the tensors of each, in order.

        Raises:
            EngineStalled: the engine hung. OutOfMemory: it found no memory. What else the engine raises.
        """
        lease = self._hold(model)

        def compute(stream: int) -> Sequence[Tensors]:
            with lease:
                return rows_of(model.engine(np.stack(rows), stream))

        return await self._streams.run(compute)
