"""Follows which model is the default one, as the store says or an operator has set it for this server."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path

from condconv_serve.serving.registry import Registry
from condconv_serve.store.default import DEFAULT_MODEL, Default, find_default
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class DefaultModel:
    """Tells the registry which model is the default one, each time that it looks.

    Once there is one, only somebody's choice of another one changes it: not a file that is damaged or gone, nor a model
    that comes or goes. A log line and a metric tell of these.
    """

    def __init__(self, store: Path, registry: Registry, *, metrics: Metrics, asked: str | None = None) -> None:
        """Prepare. Nothing is read yet.

        Args:
            store: directory of the model store.
            registry: what serves.
            metrics: shows which model is the default one.
            asked: the default model, whatever the store says; the store says it if None.
        """
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._asked = asked
        self._told = ""

    def look(self, models: Collection[str]) -> None:
        """Follow the store, which holds `models`."""
        found = self._find(models)
        before = self._registry.default_model
        followed = found.name is not None and (before is None or found.chosen or found.name == before)
        if followed and found.name != before:
            self._registry.set_default(found)
            was = "" if before is None else f"; it was {before}"
            logger.info("the default model is %s, since %s%s", found.name, found.reason, was)
            self._show(found.name, before)
        elif not followed and before is None:
            self._registry.set_default(found)
            self._tell("requests that name no model are refused: %s", found.reason)
        elif not followed:
            what = found.reason if found.name is None else f"{DEFAULT_MODEL} is not there."
            self._tell(f"the default model is still {before}, but would not be after a restart: %s", what)
        if followed:
            self._told = ""
        self._metrics.store_unfollowed.labels(DEFAULT_MODEL).set(int(not followed))

    def _find(self, models: Collection[str]) -> Default:
        if self._asked is not None:
            return Default(name=self._asked, reason="a setting says so", chosen=True)
        return find_default(self._store, models)

    def _tell(self, message: str, reason: str) -> None:
        if reason != self._told:
            logger.warning(message, reason)
            self._told = reason

    def _show(self, name: str | None, before: str | None) -> None:
        with contextlib.suppress(KeyError):
            self._metrics.default_model.remove(str(before))
        self._metrics.default_model.labels(name).set(1)
