"""Triton's model repository extension over our store: an index of all versions, loading and unloading."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condconv_serve.errors import InvalidParameter, ModelNotFound, NotSupported, VersionInUse
from condconv_serve.fronts.context import ServedModels, VersionAdmin
from condconv_serve.fronts.oip.parameters import Parameters
from condconv_serve.fronts.oip.shown import shown
from condconv_serve.serving.versions import State, VersionStatus

READY = "READY"
STATES: Mapping[State, str] = {
    "serving": READY,
    "stale": READY,
    "loading": "LOADING",
    "retiring": "UNLOADING",
    "available": "UNAVAILABLE",
    "incomplete": "UNAVAILABLE",
    "failed": "UNAVAILABLE",
}
"""Triton's names of our states."""
_REASONS: Mapping[State, str] = {"available": "not loaded", "retiring": "answers its last requests"}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of a model, in Triton's words."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Lists, loads and unloads models. Whoever calls it has checked that the caller is an admin, but for the index."""

    def __init__(self, versions: VersionAdmin, models: ServedModels) -> None:
        """Change versions by `versions`; `models` says which are served."""
        self._versions = versions
        self._models = models

    async def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """All versions of all models in the store, or those that serve.

        Raises:
            StoreUnavailable: the store can't be read.
        """
        found = await asyncio.to_thread(self._versions.status)
        entries = [_entry(name, status) for name in sorted(found) for status in found[name]]
        return [entry for entry in entries if entry.state == READY] if ready else entries

    async def load(self, name: str, parameters: Parameters) -> None:
        """Load a version, the newest one unless the parameter `version` names one; it is tried again if it failed.

        Raises:
            NotSupported: the parameters hold a configuration or files.
            ModelNotFound, VersionNotFound, BundleError, TooLittleMemory, StoreUnavailable: as `VersionAdmin.load`.
        """
        given = sorted(key for key in parameters if key == "config" or key.startswith("file:"))
        if given:
            raise NotSupported(
                f"A model is loaded as it is in the store, not with the parameter {shown(given[0])}. The parameter "
                "version is allowed."
            )
        version = _version(parameters)
        if version is None:
            versions = (await asyncio.to_thread(self._versions.status)).get(name)
            # The store has no such model: let the load say so in its own words.
            version = max((status.version for status in versions), key=int) if versions else "1"
        await self._versions.load(name, version)

    async def unload(self, name: str, parameters: Parameters) -> None:
        """Stop serving a model: all its versions, or the one that the parameter `version` names.

        Raises:
            VersionInUse: an alias points at it, or it is the default model.
            ModelNotFound, VersionNotFound, StoreUnavailable: as `VersionAdmin.unload`.
        """
        version = _version(parameters)
        if version is not None:
            await self._versions.unload(name, version)
            return
        served = self._models.models().get(name, {})
        if not served and name not in await asyncio.to_thread(self._versions.status):
            raise ModelNotFound(f"There is no model {name!r} in the store.")
        if served and name == self._models.default_model:
            raise VersionInUse(
                f"{name} is the default model, so it can't be unloaded as a whole. The parameter version unloads one "
                "of several versions."
            )
        if aliases := sorted(self._models.aliases(name)):
            raise VersionInUse(f"{name} has aliases that point at its versions: {', '.join(aliases)}.")
        for each in sorted(served, key=int):
            await self._versions.unload(name, each)


def _version(parameters: Parameters) -> str | None:
    version = parameters.get("version")
    if version is not None and not isinstance(version, str):
        raise InvalidParameter(f'The parameter version must be text, such as "1", not {shown(version)}.')
    return version


def _entry(name: str, status: VersionStatus) -> IndexEntry:
    reason = status.reason or _REASONS.get(status.state, "")
    return IndexEntry(name, status.version, STATES[status.state], reason)


def as_json(entries: Sequence[IndexEntry]) -> list[dict[str, Any]]:
    """The index as REST has it."""
    return [
        {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
        for entry in entries
    ]
