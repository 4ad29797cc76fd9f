"""Keeps models loaded while they are in use, and releases their memory afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from condconv_serve.domain import ServedModel

logger = logging.getLogger(__name__)


class Lease:
    """Keeps a model loaded until it is released; releasing twice does nothing."""

    def __init__(self, model: ServedModel, release: Callable[[ServedModel], None]) -> None:
        """Made by `Leases`."""
        self.model = model
        self._release: Callable[[ServedModel], None] | None = release

    def release(self) -> None:
        """The model may go."""
        if self._release is not None:
            release, self._release = self._release, None
            release(self.model)

    def __enter__(self) -> ServedModel:
        """Hold the model."""
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""
        self.release()


class Leases:
    """Counts the users of each model. A retired model is closed when its last lease ends. Thread-safe."""

    def __init__(self, *, release_memory: Callable[[], None]) -> None:
        """Start with no leases; `release_memory` gives freed memory back to the system after a model was closed."""
        self._release_memory = release_memory
        self._lock = threading.Lock()
        self._holders: dict[ServedModel, int] = {}
        self._waiting: dict[ServedModel, Callable[[], None]] = {}
        self._closing: set[ServedModel] = set()

    def hold(self, model: ServedModel) -> Lease:
        """Keep a model loaded.

        This is too late if the model is retired already. So after you look a model up and hold it, look it up again,
        unless another lease on it lasts as long.
        """
        with self._lock:
            self._holders[model] = self._holders.get(model, 0) + 1
        return Lease(model, self._give_back)

    def retire(self, model: ServedModel, done: Callable[[], None]) -> None:
        """Close a model as soon as nobody holds it, then call `done` on the thread that closed it."""
        with self._lock:
            self._waiting[model] = done
        self._close_if_idle(model)

    def retiring(self) -> frozenset[ServedModel]:
        """The retired models whose memory has not been released yet."""
        with self._lock:
            return frozenset({*self._waiting, *self._closing})

    def _give_back(self, model: ServedModel) -> None:
        with self._lock:
            self._holders[model] -= 1
            if not self._holders[model]:
                del self._holders[model]
        self._close_if_idle(model)

    def _close_if_idle(self, model: ServedModel) -> None:
        with self._lock:
            if self._holders.get(model) or model not in self._waiting:
                return
            done = self._waiting.pop(model)
            self._closing.add(model)

        def close() -> None:
            try:
                model.engine.close()
                self._release_memory()
            finally:
                with self._lock:
                    self._closing.discard(model)
            logger.info("model %s version %s released", model.name, model.version)
            done()

        # Freeing takes a while, and the last lease may end on the event loop.
        threading.Thread(target=close, name=f"release-{model.name}-{model.version}", daemon=True).start()
