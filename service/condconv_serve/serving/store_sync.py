"""Keeps what is served equal to what the model store holds: finds new versions, loads them, retires old ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from watchfiles import awatch

from condconv_serve.errors import BundleError, ModelNotFound, ServiceError, VersionInUse
from condconv_serve.machine.threads import LoneThread, yield_to_other_threads
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.versions import State, VersionStatus, versions_to_retire, wanted_versions
from condconv_serve.store import Catalog, open_bundle
from condconv_serve.store.aliases import (
    Alias,
    check_alias,
    delete_alias,
    find_alias,
    read_aliases,
    roll_back,
    set_alias,
)
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Fingerprint = tuple[tuple[str, int, int, int], ...]

_STATES: tuple[State, ...] = ("available", "loading", "serving", "retiring", "failed")
_SETTLE_SECONDS = 0.5
_DEBOUNCE_MS = 400


@dataclass(slots=True)
class _Model:
    """What is remembered of one model; `loaded` and `failed` by version, as the files were then."""

    loaded: dict[str, Fingerprint] = field(default_factory=dict)
    failed: dict[str, tuple[Fingerprint, str]] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    unwanted: set[str] = field(default_factory=set)
    loading: str | None = None
    retiring: set[str] = field(default_factory=set)


class StoreSync:
    """Loads and unloads as the store and the operator want it, one version at a time.

    A version is loaded and warmed up beside the one that serves; only then does it take over. One that can't be loaded
    is reported, and the others go on.
    """

    def __init__(
        self, store: Path, registry: Registry, *, newest: int, metrics: Metrics, only: str | None = None
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: directory of the model store.
            registry: what serves.
            newest: how many of the newest versions of each model are served.
            metrics: told of loads and states.
            only: name of the one model to look after; all if None.
        """
        self._store = store
        self._registry = registry
        self._newest = newest
        self._metrics = metrics
        self._only = only
        self._models: dict[str, _Model] = defaultdict(_Model)
        self._shown: dict[str, set[str]] = defaultdict(set)
        self._settle_seconds = 0.0
        self._closed = False
        # One thread, since loading takes cores and memory from what serves; and it lets others go first.
        self._loader = LoneThread("load", yield_to_other_threads)

    def close(self) -> None:
        """Begin no further load; one that is under way goes on, and `loading` tells of it."""
        self._closed = True
        self._loader.close()

    @property
    def loading(self) -> bool:
        """Whether the loader's thread is at work."""
        return self._loader.busy

    async def _on_loader(self, do: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._loader, do, *arguments)

    async def sync(self) -> None:
        """Load what is wanted and isn't there, then retire what isn't wanted any more."""
        await self._on_loader(self.sync_now)

    def sync_now(self) -> None:
        """The same on the calling thread, which must be the loader's, or the only one that there is so far."""
        try:
            catalog = Catalog(self._store)
            names = catalog.models()
        except (OSError, BundleError) as error:  # the directory may be back in a moment
            logger.error("the model store can't be read, so nothing changes: %s", error)
            return
        served = self._registry.models()
        for name in [self._only] if self._only else sorted({*names, *served}):
            try:
                self._sync_model(name, catalog)
            except OSError as error:  # the others can be
                logger.error("%s can't be read in the model store, so nothing changes of it: %s", name, error)

    def demand(self, name: str) -> None:
        """Check that a model is served.

        Raises:
            ModelNotFound: it isn't in the store.
            BundleError: why no version of it can be served.
        """
        if name not in self._registry.models():
            Catalog(self._store).find(name)
            failed = self._models[name].failed
            raise BundleError(failed[max(failed, key=int)][1] if failed else f"{name} could not be loaded.")

    async def watch(self, *, interval: float) -> None:
        """Follow the store until cancelled: at once where the system tells of changes, and every `interval` seconds."""
        self._settle_seconds = _SETTLE_SECONDS
        told = False
        while True:
            # Some file systems, those over a network among them, don't tell of changes made elsewhere.
            changes = awatch(
                self._store,
                debounce=_DEBOUNCE_MS,
                rust_timeout=int(interval * 1000),
                yield_on_timeout=True,
                ignore_permission_denied=True,
            )
            try:
                async for _ in changes:
                    await self._try_to_sync()
            except Exception as error:  # the system can tell of no further directory, say
                log = logger.debug if told else logger.warning
                log("nothing tells of changes of the model store, so it is looked at every %g s: %s", interval, error)
                told = True
            await asyncio.sleep(interval)
            await self._try_to_sync()

    async def _try_to_sync(self) -> None:
        try:
            await self.sync()
        except Exception:  # whatever it is, the next change gets its chance
            logger.exception("the model store could not be followed")

    async def load(self, name: str, version: str) -> VersionStatus:
        """Load a version, and keep it whatever else there is; a broken one is tried again.

        Raises:
            ModelNotFound, VersionNotFound: it doesn't lie in the store.
            BundleError: it can't be loaded.
        """
        return await self._on_loader(self._load_on_request, name, version)

    def _load_on_request(self, name: str, version: str) -> VersionStatus:
        self._find(name, version)
        model = self._models[name]
        model.failed.pop(version, None)
        model.unwanted.discard(version)
        model.pinned.add(version)
        self._sync_model(name, Catalog(self._store))
        try:
            self._demand_served(name, [version])
        except ServiceError:
            model.pinned.discard(version)
            raise
        return self._status(name, version)

    async def unload(self, name: str, version: str) -> VersionStatus:
        """Serve a version no more, until it is loaded on request or its files change.

        Raises:
            ModelNotFound, VersionNotFound: it is neither served nor in the store.
            VersionInUse: an alias points at it, or it is all that is left of the default model.
        """
        return await self._on_loader(self._unload_on_request, name, version)

    def _unload_on_request(self, name: str, version: str) -> VersionStatus:
        served = self._registry.models().get(name, {})
        if version not in served:
            self._find(name, version)
        if users := sorted(a for a, alias in self._registry.aliases(name).items() if version in alias.versions):
            raise VersionInUse(f"Version {version} of {name} is what {', '.join(users)} points at.")
        if name == self._registry.default_model and set(served) == {version}:
            raise VersionInUse(f"Version {version} is all that is served of {name}, the default model.")
        model = self._models[name]
        model.pinned.discard(version)
        model.unwanted.add(version)
        self._retire(name, version)
        return self._status(name, version)

    async def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> Alias:
        """Point an alias at versions; those that aren't loaded are loaded first, and then all traffic moves at once.

        Raises:
            InvalidParameter: the name or the weights can't be.
            ModelNotFound, VersionNotFound: a version doesn't lie in the store.
            BundleError: a version can't be loaded; the alias stays as it was.
            StoreNotWritable: nothing can be written to the store.
        """
        check_alias(alias, versions)
        return await self._on_loader(self._set_alias, name, alias, versions)

    def _set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> Alias:
        for version in versions:
            self._find(name, version)
        for version in versions:
            self._models[name].failed.pop(version, None)
            self._models[name].unwanted.discard(version)
        self._sync_model(name, Catalog(self._store), also=versions)
        self._demand_served(name, versions)
        changed = set_alias(self._store, name, alias, versions)
        self._sync_model(name, Catalog(self._store))
        return changed

    async def roll_back(self, name: str, alias: str) -> Alias:
        """Point an alias back to where it pointed before.

        Raises:
            ModelNotFound, AliasNotFound: there is none such; InvalidParameter: it has always pointed there.
            VersionNotFound, BundleError, StoreNotWritable: as for `set_alias`.
        """
        return await self._on_loader(self._roll_back, name, alias)

    def _roll_back(self, name: str, alias: str) -> Alias:
        self._find(name, None)
        now = find_alias(read_aliases(self._store, name), name, alias)
        if now.previous is None:
            return roll_back(self._store, name, alias)  # which says so
        return self._set_alias(name, alias, now.previous)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias.

        Raises:
            ModelNotFound, AliasNotFound: there is none such; StoreNotWritable: nothing can be written to the store.
        """
        await self._on_loader(self._delete_alias, name, alias)

    def _delete_alias(self, name: str, alias: str) -> None:
        self._find(name, None)
        delete_alias(self._store, name, alias)
        self._sync_model(name, Catalog(self._store))

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """How every version of every model is doing, served or not; oldest first."""
        try:
            catalog = Catalog(self._store)
            lying = {name: catalog.versions(name) for name in ([self._only] if self._only else catalog.models())}
        except (OSError, BundleError):
            lying = {}
        names = sorted({*lying, *self._registry.models(), *(n for n, m in list(self._models.items()) if m.retiring)})
        return {name: self._statuses(name, lying.get(name, ())) for name in names}

    def _statuses(self, name: str, lying: tuple[str, ...]) -> list[VersionStatus]:
        model, served = self._models.get(name, _Model()), self._registry.models().get(name, {})
        versions = {*lying, *served, *model.retiring}
        return [self._status(name, version) for version in sorted(versions, key=int)]

    def _status(self, name: str, version: str) -> VersionStatus:
        model = self._models.get(name, _Model())
        reason = model.failed[version][1] if version in model.failed else None
        state: State = "available"
        if model.loading == version:
            state = "loading"
        elif version in self._registry.models().get(name, {}):
            state = "serving"
        elif version in model.retiring:
            state = "retiring"
        elif reason is not None:
            state = "failed"
        return VersionStatus(version, state, reason)

    def _sync_model(self, name: str, catalog: Catalog, *, also: Mapping[str, int] | None = None) -> None:
        model = self._models[name]
        aliases = self._read_aliases(name)
        aliased = {version for alias in aliases.values() for version in alias.versions} | set(also or {})
        unsettled: set[str] = set()
        while True:
            lying = catalog.versions(name)
            prints = {version: _fingerprint(self._store / name / version) for version in lying}
            for version, found in prints.items():
                if version in model.failed and model.failed[version][0] != found:
                    del model.failed[version]  # somebody has changed it, so it gets another chance
                if version in model.unwanted and model.loaded.get(version, found) != found:
                    model.unwanted.discard(version)
            served = self._registry.models().get(name, {})
            usable = [version for version in lying if version not in model.failed or version in served]
            wanted = wanted_versions(
                usable, newest=self._newest, aliased=aliased, pinned=model.pinned, unwanted=model.unwanted
            )
            due = [
                version
                for version in sorted(wanted, key=int, reverse=True)
                if version not in {*model.failed, *unsettled}
                and (version not in served or model.loaded.get(version) != prints[version])
            ]
            if not due or self._closed:
                break
            if self._is_settled(name, due[0], prints[due[0]]):
                self._load(name, due[0], prints[due[0]])
            else:
                unsettled.add(due[0])  # its next change brings us back
        served = self._registry.models().get(name, {})
        in_force = {alias: to for alias, to in aliases.items() if set(to.versions) <= set(served)}
        for alias in set(aliases) - set(in_force):
            # Rather where it pointed last than nowhere.
            logger.error("alias %s of %s points at what can't be served, so it stays as it was", alias, name)
            before = self._registry.aliases(name).get(alias)
            if before is not None and set(before.versions) <= set(served):
                in_force[alias] = before
        self._registry.set_aliases(name, in_force)
        held = {version for alias in in_force.values() for version in alias.versions}
        for version in versions_to_retire(served, wanted | held, model.unwanted):
            self._retire(name, version)
        self._report(name, catalog)

    def _is_settled(self, name: str, version: str, found: Fingerprint) -> bool:
        """Whether a bundle rests: who copies one into the place of a running server may not be done yet."""
        time.sleep(self._settle_seconds)
        return _fingerprint(self._store / name / version) == found

    def _load(self, name: str, version: str, found: Fingerprint) -> None:
        model, started = self._models[name], time.monotonic()
        model.loading = version
        self._show_state(name, version)
        try:
            bundle = open_bundle(self._store / name / version)
            logger.info("%s/%s: bundle checked in %.1f s", name, version, time.monotonic() - started)
            self._registry.load(bundle)
        except Exception as error:
            known = isinstance(error, ServiceError)
            model.failed[version] = (found, str(error) if known else "It could not be loaded; the log says why.")
            self._metrics.model_loads.labels(name, "failed").inc()
            logger.error("model %s version %s can't be served: %s", name, version, error, exc_info=not known)
        else:
            model.failed.pop(version, None)
            model.loaded[version] = found
            model.unwanted.discard(version)
            self._metrics.model_loads.labels(name, "loaded").inc()
            self._metrics.model_swap_seconds.observe(time.monotonic() - started)
        finally:
            model.loading = None

    def _retire(self, name: str, version: str) -> None:
        model = self._models[name]
        if version not in self._registry.models().get(name, {}):
            return

        def released() -> None:
            model.retiring.discard(version)
            self._metrics.model_loads.labels(name, "unloaded").inc()
            self._show_state(name, version)

        model.retiring.add(version)
        logger.info("model %s version %s is retired", name, version)
        self._registry.unload(name, version, done=released)
        self._show_state(name, version)

    def _read_aliases(self, name: str) -> Mapping[str, Alias]:
        try:
            return read_aliases(self._store, name)
        except BundleError as error:
            logger.error("%s; the aliases stay as they were", error)
            return self._registry.aliases(name)

    def _find(self, name: str, version: str | None) -> None:
        """Raise ModelNotFound or VersionNotFound if it doesn't lie in the store."""
        if self._only not in (None, name):
            raise ModelNotFound(f"There is no model {name!r} here; there is: {self._only}.")
        Catalog(self._store).find(name, version)

    def _demand_served(self, name: str, versions: Mapping[str, int] | list[str]) -> None:
        served = self._registry.models().get(name, {})
        for version in versions:
            if version in served:
                continue
            failed = self._models[name].failed.get(version)
            if failed is not None:
                raise BundleError(failed[1])
            self._find(name, version)
            raise BundleError(f"{name}/{version}: its files are still changing; try again when they are complete.")

    def _report(self, name: str, catalog: Catalog) -> None:
        now = {status.version for status in self._statuses(name, catalog.versions(name))}
        for version in now:
            self._show_state(name, version)
        for version in self._shown[name] - now:
            for state in _STATES:
                self._metrics.model_version_state.remove(name, version, state)
        self._shown[name] = now

    def _show_state(self, name: str, version: str) -> None:
        now = self._status(name, version).state
        self._shown[name].add(version)
        for state in _STATES:
            self._metrics.model_version_state.labels(name, version, state).set(int(state == now))


def _fingerprint(path: Path) -> Fingerprint:
    """What changes when a bundle's files do."""
    found = []
    try:
        for file in sorted(path.iterdir()):
            stat = file.stat()
            found.append((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    except OSError:
        return ()
    return tuple(found)
