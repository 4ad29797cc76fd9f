"""Keeps a load from taking more memory than is left, since the system would then kill the whole server."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from condconv_serve.errors import OutOfMemory, TooLittleMemory
from condconv_serve.machine.memory import MemoryUse, memory_left, memory_use
from condconv_serve.store import Bundle

RETRY_SECONDS = 30.0

_REMEMBERED = 3
# A load beside others shows less than it needs, since it takes what they have freed.
_LEAST, _MOST = 0.8, 3.0
_MORE = 1.1


class MemoryCheck:
    """Estimates what loads need, compares it with what is left, and learns from the loads that it sees. Thread-safe."""

    def __init__(
        self,
        estimate: Callable[[Bundle], int],
        *,
        prepare: Callable[[], None] = lambda: None,
        prepare_bytes: int = 0,
        left: Callable[[], int | None] = memory_left,
        use: Callable[[], MemoryUse | None] = memory_use,
    ) -> None:
        """Start with the estimates as they are.

        Args:
            estimate: bytes that loading a bundle needs at its peak.
            prepare: what must be done before the first load, such as importing an engine.
            prepare_bytes: bytes that this takes.
            left: bytes that this process may still take; None if that isn't known, and then nothing is refused.
            use: the bytes that this process has; None if that isn't known, and then nothing is learned.
        """
        self._estimate = estimate
        self._prepare = prepare
        self._prepare_bytes = prepare_bytes
        self._left = left
        self._use = use
        self._lock = threading.Lock()
        self._ratios: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._under_way = 0

    def needs(self, bundle: Bundle) -> int:
        """Bytes that loading a bundle will need: the estimate, times what it was wrong by in the loads so far.

        The last loads of the same model tell most. For a model that is new, the estimate counts as one load more.
        """
        with self._lock:
            seen = {name: statistics.median(ratios) for name, ratios in self._ratios.items()}
        ratio = seen.get(bundle.manifest.name) or statistics.median([1.0, *seen.values()])
        return round(self._estimate(bundle) * ratio) + self._prepare_bytes

    def left(self) -> int | None:
        """Bytes that are left for another load, without what the loads under way still need; None if not known."""
        left = self._left()
        return None if left is None else max(left - self._under_way, 0)

    def fits(self, needs: int) -> bool:
        """Whether a load that needs so many bytes may begin."""
        left = self.left()
        return left is None or needs <= left

    @contextlib.contextmanager
    def loading(self, bundle: Bundle) -> Iterator[None]:
        """Load a bundle within the block.

        Raises:
            TooLittleMemory: it needs more than is left, or there was too little in spite of the estimate.
        """
        name = f"{bundle.manifest.name}/{bundle.manifest.version}"
        needs, left = self.needs(bundle), self.left()
        if left is not None and needs > left:
            raise TooLittleMemory(
                f"{name} needs about {_megabytes(needs)} of memory to load, but the memory limit leaves "
                f"{_megabytes(left)}.",
                needs=needs,
                retry_after=RETRY_SECONDS,
            )
        with self._lock:
            self._under_way += needs
        try:
            self._prepare()
            self._prepare_bytes = 0
            before = self._use()
            yield
            self._learn(bundle, before, self._use())
        except (MemoryError, OutOfMemory) as error:
            # It needs more than there was, so it is tried again when there is more.
            raise TooLittleMemory(
                f"{name} found too little memory while it was loaded.",
                needs=max(needs, round((left or 0) * _MORE)),
                retry_after=RETRY_SECONDS,
            ) from error
        finally:
            with self._lock:
                self._under_way -= needs

    def _learn(self, bundle: Bundle, before: MemoryUse | None, after: MemoryUse | None) -> None:
        """Compare the estimate with the peak. It shows only if it was higher than all peaks before."""
        if before is not None and after is not None and after.most > before.most:
            ratio = (after.most - before.now) / max(self._estimate(bundle), 1)
            with self._lock:
                self._ratios[bundle.manifest.name].append(min(max(ratio, _LEAST), _MOST))


def _megabytes(amount: int) -> str:
    return f"{amount / 1e6:.0f} MB"
