"""An engine whose batches a test lets go one by one, and rows to send through it."""

import asyncio
import contextlib
import math
import time

from prometheus_client import CollectorRegistry

from condconv_serve.inference.batching import Batcher, Priority
from condconv_serve.telemetry.metrics import Metrics


class Engine:
    """Answers ten times the row, and fails a batch with a guilty row in it; while it is held, batches wait."""

    def __init__(self, *, held=False, guilty=(), error=ValueError):
        self.batches = []
        self.running = 0
        self.guilty = set(guilty)
        self.error = error
        self._waiting = []
        self._held = held

    async def __call__(self, key, rows):
        self.batches.append((key, list(rows)))
        self.running += 1
        try:
            if self._held:
                gate = asyncio.Event()
                self._waiting.append(gate)
                await gate.wait()
        finally:
            self.running -= 1
        if bad := self.guilty & set(rows):
            raise self.error(f"secret of {sorted(bad)}")
        return [row * 10 for row in rows]

    @property
    def sizes(self):
        return [len(rows) for _, rows in self.batches]

    def let_go(self, position=0):
        """Let one of the waiting batches finish, the oldest by default."""
        if self._waiting:
            self._waiting.pop(position % len(self._waiting)).set()

    def release(self):
        """Let all batches finish, future ones too."""
        self._held = False
        while self._waiting:
            self.let_go()


async def settle(turns=30):
    """Let the event loop go on until nothing more happens of itself; there are no threads here."""
    for _ in range(turns):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def batching(engine, *, streams=1, max_batch_size=4, max_queue_rows=100, **options):
    """A running batcher; what hangs fails."""
    metrics = Metrics(CollectorRegistry())
    batcher = Batcher(
        engine,
        streams=streams,
        max_batch_size=max_batch_size,
        max_queue_rows=max_queue_rows,
        metrics=metrics,
        **options,
    )
    batcher.read = lambda name, **labels: metrics.registry.get_sample_value(name, labels)
    async with asyncio.timeout(20), batcher:
        yield batcher


async def send(batcher, row, key="a", *, priority=Priority.NORMAL, seconds=math.inf):
    """Send one row through, which has so many seconds for it."""
    deadline = time.monotonic() + seconds
    with batcher.admit(key, 1, priority=priority, deadline=deadline) as admission:
        return await batcher.submit(row, admission, deadline=deadline)


def start(batcher, rows, key="a", **options):
    """Send rows, each by a task of its own."""
    return [asyncio.create_task(send(batcher, row, key, **options)) for row in rows]
