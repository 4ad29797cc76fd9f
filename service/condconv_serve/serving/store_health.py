"""What is wrong with the store, for readiness, the log and a metric."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from condconv_serve.serving.registry import Registry
from condconv_serve.serving.unserved import Trouble
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class StoreHealth:
    """Remembers which files of the store aren't followed, and knows which models readiness needs.

    Any thread may ask. Only the loader's thread tells.
    """

    def __init__(
        self, registry: Registry, *, metrics: Metrics, at_start: Sequence[str], ready_models: Sequence[str] | None
    ) -> None:
        """Know of nothing wrong yet.

        Args:
            registry: what serves.
            metrics: shows the files that aren't followed.
            at_start: models in the store at the start. Readiness needs them, unless they go from the store.
            ready_models: the models that readiness needs instead, whether they are there yet or not.
        """
        self._registry = registry
        self._metrics = metrics
        self._needed = tuple(at_start if ready_models is None else ready_models)
        self._asked = ready_models is not None
        self._files: dict[str, str] = {}
        self._reached: frozenset[str] = frozenset()
        self._reported: str | None = None

    def needs(self, name: str) -> bool:
        """Whether readiness needs a model."""
        return name in self._needed

    def tell(self, file: str, problem: str | None) -> None:
        """Say why a file of the store isn't followed, or None if it is. The log says so once for each problem."""
        if problem is not None and self._files.get(file) != problem:
            logger.error("%s", problem)
        if problem is None and file in self._files:
            logger.info("%s is followed again", file)
        self._metrics.store_unfollowed.labels(file).set(int(problem is not None))
        files = {name: text for name, text in self._files.items() if name != file}
        self._files = files if problem is None else {**files, file: problem}

    def forget(self, file: str) -> None:
        """Say nothing more of a file, since its model has gone."""
        self._files = {name: text for name, text in self._files.items() if name != file}
        with contextlib.suppress(KeyError):
            self._metrics.store_unfollowed.remove(file)

    def unready(self) -> Trouble | None:
        """Why the models that readiness needs can't be answered; None if they can.

        A model that could be answered once is good for ever: mistakes in the store change nothing that is served, and
        what an operator unloads isn't needed.
        """
        if not self._asked and (trouble := self._registry.default_trouble()):
            return trouble
        troubles = (self._trouble(name) for name in self._needed if name not in self._reached)
        return next((trouble for trouble in troubles if trouble), None)

    def problems(self) -> list[str]:
        """All that is wrong, a sentence each, whether readiness needs it or not."""
        troubles = [self._registry.trouble(name) for name in sorted(self._registry.unserved())]
        return list(dict.fromkeys([*self._files.values(), *(trouble.reason for trouble in troubles if trouble)]))

    def report(self) -> None:
        """Log whether readiness has what it needs, if that has changed; after each look at the store."""
        self._reached |= {name for name in self._needed if self._registry.knows(name) and not self._trouble(name)}
        trouble = self.unready()
        reason = trouble.reason if trouble else ""
        if reason != self._reported:
            self._reported = reason
            if trouble:
                logger.error("not ready: %s", reason)
            else:
                logger.info("ready")

    def _trouble(self, name: str) -> Trouble | None:
        if self._asked and not self._registry.knows(name):
            return Trouble(f"Model {name} is needed, but is not in the model store.")
        return self._registry.trouble(name)
