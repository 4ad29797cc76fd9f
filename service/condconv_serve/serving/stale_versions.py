"""Finds the served versions that would not be there after a restart, since their files have gone or are broken."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from condconv_serve.serving.fingerprint import Fingerprint
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.stored_files import Marks, StoredFiles
from condconv_serve.serving.version_ledger import VersionLedger
from condconv_serve.store.bundle import MANIFEST

logger = logging.getLogger(__name__)


class StaleVersions:
    """Keeps in the ledger which served versions are stale; on the loader's thread."""

    def __init__(self, store: Path, registry: Registry, ledger: VersionLedger) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self._registry = registry
        self._ledger = ledger
        self._files = StoredFiles()

    def loaded(self, name: str, version: str, found: Marks) -> None:
        """A version has been loaded from files that had these marks."""
        self._files.trust(self._store / name / version, found)

    def retired(self, name: str, version: str) -> None:
        """A version isn't served any more."""
        self._files.forget(self._store / name / version)

    def look(self, name: str, stored: Mapping[str, Fingerprint]) -> None:
        """Look whether what serves of a model could be loaded anew; `stored` are the files of the store's versions."""
        stale = {version: self._why(name, version, stored.get(version)) for version in self._served(name)}
        self._note(name, {version: reason for version, reason in stale.items() if reason is not None})

    def nothing_readable(self, name: str, reason: str) -> None:
        """Nothing of a model could be loaded anew now."""
        self._note(name, dict.fromkeys(self._served(name), reason))
        for version in self._served(name):
            self._ledger.show(name, version)

    def _served(self, name: str) -> list[str]:
        return list(self._registry.models().get(name, {}))

    def _why(self, name: str, version: str, files: Fingerprint | None) -> str | None:
        memory = self._ledger.memory(name)
        if (failure := memory.failed.get(version)) is not None:
            return failure.reason if failure.arriving_since is None else None
        if files not in (None, memory.loaded.get(version)):  # its new files have not settled
            return None
        names = {MANIFEST, *self._registry.models()[name][version].info.manifest.files}
        return self._files.problem(self._store / name / version, names)

    def _note(self, name: str, stale: dict[str, str]) -> None:
        memory = self._ledger.memory(name)
        before, memory.stale = memory.stale, stale
        for version, reason in stale.items():
            if before.get(version) != reason:
                logger.error("model %s version %s serves, but not after a restart: %s", name, version, reason)
