"""Live routing statistics of one served version, over sliding windows."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from condconv_serve.domain import RoutingLayout
from condconv_serve.routing.tally import CLASS_BYTES, Counts, Floats, Tally

Window = Literal["1m", "15m", "all"]
WINDOWS: tuple[Window, ...] = get_args(Window)
_SPANS: dict[Window, tuple[float, int]] = {"1m": (5.0, 12), "15m": (60.0, 15)}
"""Length (seconds) and number of the parts of a window. The first one's length divides the other's."""
_MAX_PENDING_ROWS, _MAX_PENDING_VALUES = 512, 65_536


class RoutingStatistics:
    """Counts images as they are answered. Thread-safe; the memory has a limit, whatever the traffic.

    A window consists of parts, the last of which is still filling: `1m` covers the last 55 to 60 seconds, `15m` the
    last 14 to 15 minutes, `all` everything since the start or the last reset. Images are counted some hundred at once,
    since that is much cheaper. Readers still see all of them.
    """

    def __init__(
        self,
        layout: RoutingLayout,
        *,
        class_bytes: int = CLASS_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            layout: whose routing is counted.
            class_bytes: most memory for the classes of `all`; all other windows together have the same.
            clock: monotonic, in seconds.
        """
        self.layout = layout
        self._class_bytes = class_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._max_pending = max(1, min(_MAX_PENDING_ROWS, _MAX_PENDING_VALUES // max(math.prod(layout.shape), 1)))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._started = self._clock()
            self._all = Tally(self.layout, self._class_bytes)
            share = self._class_bytes // sum(number for _, number in _SPANS.values())
            self._rings = {w: _Ring(self.layout, *span, class_bytes=share) for w, span in _SPANS.items()}
            self._pending: list[NDArray[np.float32]] = []
            self._pending_classes: list[int | Counts] = []
            self._pending_part = 0.0

    def observe(self, weights: NDArray[np.float32], classes: int | Counts) -> None:
        """Count one image: its routing weights `[blocks, experts]`, and its class, or all that were found in it."""
        now = self._clock()
        part = now // _SPANS["1m"][0]
        with self._lock:
            if part != self._pending_part or len(self._pending) >= self._max_pending:
                self._count_pending()
                self._pending_part = part
            self._pending.append(weights)
            self._pending_classes.append(classes)

    def read(self, window: Window = "all", *, classes: bool = True) -> Tally:
        """The images of a window, as a copy for the caller. Without classes it is much cheaper."""
        total = Tally(self.layout, self._class_bytes)
        with self._lock:
            self._count_pending()
            parts = [self._all] if window == "all" else self._rings[window].parts(self._clock())
            for part in parts:
                total.merge(part, classes=classes)
        return total

    def class_of(self, index: int) -> tuple[int, Floats] | None:
        """Images of a class in `all`, and their mean weights `[blocks, experts]`; None if there is none."""
        with self._lock:
            self._count_pending()
            return self._all.classes.get(index)

    def seconds(self, window: Window = "all") -> float:
        """How long a window reaches back, in seconds."""
        with self._lock:
            age = self._clock() - self._started
            if window == "all":
                return age
            length, number = _SPANS[window]
            return min(age, (number - 1) * length + self._clock() % length)

    def _count_pending(self) -> None:
        if not self._pending:
            return
        pending = np.stack(self._pending)
        tally = Tally.of(pending, self._pending_classes, self.layout, class_bytes=self._class_bytes)
        self._pending, self._pending_classes = [], []
        # Count from when they came: they may have waited for a while.
        then = self._pending_part * _SPANS["1m"][0]
        self._all.merge(tally)
        for ring in self._rings.values():
            ring.current(then).merge(tally)


class _Ring:
    """The newest parts of a window; older ones fall out."""

    def __init__(self, layout: RoutingLayout, length: float, number: int, *, class_bytes: int) -> None:
        self._layout = layout
        self._length = length
        self._number = number
        self._class_bytes = class_bytes
        self._parts: deque[tuple[int, Tally]] = deque()

    def current(self, now: float) -> Tally:
        part = int(now // self._length)
        self._expire(part)
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append((part, Tally(self._layout, self._class_bytes)))
        return self._parts[-1][1]

    def parts(self, now: float) -> list[Tally]:
        self._expire(int(now // self._length))
        return [tally for _, tally in self._parts]

    def _expire(self, part: int) -> None:
        while self._parts and self._parts[0][0] <= part - self._number:
            self._parts.popleft()
