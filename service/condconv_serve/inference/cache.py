"""The response cache: what the network answered for rows that came before, within a number of bytes."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from condconv_serve.domain import Placement, RowAnswer, ServedModel, Tensors
from condconv_serve.errors import ConfigurationError
from condconv_serve.telemetry.metrics import Metrics

_ENTRY_BYTES = 640
"""What an entry takes beside its arrays: its key with the digest, its place in the order, its own objects."""


@dataclass(frozen=True, slots=True)
class RowKey:
    """What an answer is kept under.

    Attributes:
        model: the very load of a version. A version that was loaded again is another one: its files may have changed.
        scope: whose answer it is, see `CacheUse`.
        digest: of the image, see `RowSource`.
    """

    model: ServedModel
    scope: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class KeptRow:
    """What the network answered for a row.

    Attributes:
        tensors: the model's outputs; copies of their own, which nobody can write to.
        batch_size: rows in its batch.
        placement: where the row lies in its photo; None if it came as pixels alone.
        at: when it was computed, on the monotonic clock.
    """

    tensors: Tensors
    batch_size: int
    placement: Placement | None
    at: float

    @property
    def nbytes(self) -> int:
        """The memory that it takes in the cache."""
        arrays = sum(sys.getsizeof(values) + sys.getsizeof(name) for name, values in self.tensors.items())
        return arrays + sys.getsizeof(self.tensors) + _ENTRY_BYTES


def kept(answer: RowAnswer, *, at: float) -> KeptRow:
    """Copy an answer: its own arrays are views of a whole batch's, and would hold all of them."""
    tensors = {name: np.array(values) for name, values in answer.tensors.items()}
    for values in tensors.values():
        values.flags.writeable = False
    return KeptRow(tensors, answer.batch_size, answer.placement, at)


def row_cache(max_bytes: int, *, memory_limit: int | None, metrics: Metrics) -> RowCache:
    """An empty cache; one of 0 bytes keeps nothing.

    Raises:
        ConfigurationError: it would be larger than all memory, so it could only end in the death of the process.
    """
    if memory_limit is not None and max_bytes >= memory_limit:
        raise ConfigurationError(
            f"The cache may take {max_bytes} bytes, but this process may use {memory_limit} in all. Set "
            "CONDCONV_CACHE_BYTES to less than what the models leave."
        )
    return RowCache(max_bytes, metrics=metrics)


class RowCache:
    """Keeps answers of rows. If there is no room, those go that nobody has asked for for longest.

    Thread-safe: rows come and go on the event loop, versions go on threads of their own.
    """

    def __init__(self, max_bytes: int, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            max_bytes: the most memory that its rows take.
            metrics: counts rows that go, and shows how full it is.
            clock: in seconds; another one for tests.
        """
        self.max_bytes = max_bytes
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: OrderedDict[RowKey, tuple[KeptRow, int]] = OrderedDict()
        self._scopes: Counter[str] = Counter()
        self._bytes = 0
        metrics.cache_max_bytes.set(max_bytes)
        metrics.cache_bytes.set_function(lambda: self._bytes)
        for reason in ("room", "version"):
            metrics.cache_evictions.labels(reason)

    def __len__(self) -> int:
        """How many rows it holds."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """The memory that its rows take."""
        return self._bytes

    @property
    def free_bytes(self) -> int:
        """How much it may still grow."""
        return self.max_bytes - self._bytes

    def left_beside(self, left: Callable[[], int | None]) -> int | None:
        """What `left` bytes leave for others once the cache is full; None if it isn't known."""
        now = left()
        return None if now is None else max(now - self.free_bytes, 0)

    def get(self, key: RowKey, *, max_age: float = math.inf) -> KeptRow | None:
        """The answer for a row, if there is one that is younger than `max_age` seconds."""
        with self._lock:
            found = self._rows.get(key)
            if found is None or self._clock() - found[0].at >= max_age:
                return None
            self._rows.move_to_end(key)
            return found[0]

    def put(self, key: RowKey, row: KeptRow) -> None:
        """Keep an answer in place of an older one. One that is larger than the whole cache isn't kept."""
        size = row.nbytes
        with self._lock:
            if key in self._rows:
                self._remove(key)
            if size > self.max_bytes:
                return
            while self._bytes + size > self.max_bytes:
                self._remove(next(iter(self._rows)))
                self._metrics.cache_evictions.labels("room").inc()
            self._rows[key] = row, size
            self._scopes[key.scope] += 1
            self._bytes += size

    def holds(self, scope: str) -> bool:
        """Whether there are answers of a scope."""
        return scope in self._scopes

    def drop(self, model: ServedModel) -> None:
        """Forget a model that serves no more. Call it when nobody holds the model any longer: nothing is kept then."""
        with self._lock:
            keys = list(self._rows)
        for key in keys:
            if key.model is model:
                with self._lock:  # for each row anew, so that the event loop never waits long for it
                    if key in self._rows:
                        self._remove(key)
                        self._metrics.cache_evictions.labels("version").inc()

    def _remove(self, key: RowKey) -> None:
        _, size = self._rows.pop(key)
        self._bytes -= size
        self._scopes[key.scope] -= 1
        if not self._scopes[key.scope]:
            del self._scopes[key.scope]
