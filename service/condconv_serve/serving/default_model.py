"""Follows which model is the default one, as the store says or an operator has set it for this server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path

from condconv_serve.errors import ServiceError
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_health import StoreHealth
from condconv_serve.store.default import DEFAULT_MODEL, Default, find_default
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class DefaultModel:
    """Tells the registry which model is the default one, each time that it looks.

    Once there is one, only somebody's choice of another one changes it, as soon as that one is served: not a file that
    is damaged or gone, nor a model that comes or goes. A log line and a metric tell of these.
    """

    def __init__(
        self, store: Path, registry: Registry, health: StoreHealth, *, metrics: Metrics, asked: str | None = None
    ) -> None:
        """Prepare. Nothing is read yet.

        Args:
            store: directory of the model store.
            registry: what serves.
            health: is told what can't be followed.
            metrics: shows which model is the default one.
            asked: the default model, whatever the store says; the store says it if None.
        """
        self._store = store
        self._registry = registry
        self._health = health
        self._metrics = metrics
        self._asked = asked

    def look(self, models: Collection[str]) -> None:
        """Follow the store, which holds `models`."""
        found = self._find(models)
        before = self._registry.default_model
        problem = self._problem(found, before)
        if problem is None and found.name != before:
            self._registry.set_default(found)
            was = "" if before is None else f"; it was {before}"
            logger.info("the default model is %s, since %s%s", found.name, found.reason, was)
            self._show(found.name, before)
        elif before is None:
            self._registry.set_default(found)
        self._health.tell(DEFAULT_MODEL, problem)

    def _find(self, models: Collection[str]) -> Default:
        if self._asked is not None:
            return Default(name=self._asked, reason="a setting says so", chosen=True)
        return find_default(self._store, models)

    def _problem(self, found: Default, before: str | None) -> str | None:
        """Why what was found isn't followed; None if it is."""
        if before is None:
            return found.reason if found.name is None else None
        if found.name == before:
            return None
        if found.name is None:
            why = found.reason
        elif not found.chosen:
            why = f"{DEFAULT_MODEL} is gone from the model store."
        else:
            try:
                self._registry.get(found.name)
            except ServiceError as error:
                why = f"The new default model can't be served: {error}"
            else:
                return None
        return f"{why} The default model is still {before}, but not after a restart."

    def _show(self, name: str | None, before: str | None) -> None:
        with contextlib.suppress(KeyError):
            self._metrics.default_model.remove(str(before))
        self._metrics.default_model.labels(name).set(1)
