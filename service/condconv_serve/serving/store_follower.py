"""Makes the served versions follow the model store: carries out what `reconcile` decides, one version at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from condconv_serve.errors import BundleError, ServiceError, StoreUnavailable, TooLittleMemory
from condconv_serve.machine.threads import LoneThread, yield_to_other_threads
from condconv_serve.serving.alias_follower import AliasFollower
from condconv_serve.serving.fingerprint import Fingerprint, fingerprint
from condconv_serve.serving.memory_check import MemoryCheck
from condconv_serve.serving.open_store import open_store
from condconv_serve.serving.reconcile import (
    Forgive,
    Load,
    Retire,
    ServedVersions,
    SetAliases,
    Stored,
    WaitToSettle,
    WantAgain,
    Wishes,
    followed_models,
    reconcile,
)
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.stale_versions import StaleVersions
from condconv_serve.serving.store_health import StoreHealth
from condconv_serve.serving.stored_files import marks
from condconv_serve.serving.unserved import Trouble, Unserved, still_loading, unreadable, version_loading
from condconv_serve.serving.version_ledger import Failure, ModelMemory, VersionLedger
from condconv_serve.serving.watch import changes
from condconv_serve.store import Catalog, open_bundle
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class StoreFollower:
    """Loads and retires versions as the store and the operator want, all on one thread.

    A version is loaded and warmed up beside the one that serves, and only then takes over. If it can't be loaded, that
    is reported, and everything else goes on.
    """

    def __init__(
        self,
        store: Path,
        registry: Registry,
        ledger: VersionLedger,
        *,
        newest: int,
        health: StoreHealth,
        metrics: Metrics,
        memory: MemoryCheck,
        follow_default: Callable[[Collection[str]], None],
        settle_seconds: float = 0.5,
        stalled_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        prepare_thread: Callable[[], None] = yield_to_other_threads,
    ) -> None:
        """Prepare. Nothing is read yet.

        Args:
            store: directory of the model store.
            registry: what serves.
            ledger: remembers what came of each version, and what is wanted.
            newest: how many of the newest versions of each model are served.
            health: is told what can't be followed, and says what is loaded first.
            metrics: counts loads.
            memory: says whether there is enough for another version.
            follow_default: finds the default model among those of the store.
            settle_seconds: a bundle's files must stay the same for this long before it is loaded, since somebody may
                still be copying them. At the start there is no wait.
            stalled_seconds: if half a copy stays the same for this long, nobody waits for the rest any more.
            clock: tells the time in seconds.
            sleep: waits for so many seconds on the loader's thread.
            prepare_thread: called on the loader's thread before anything else.
        """
        self._store = store
        self._registry = registry
        self._ledger = ledger
        self._newest = newest
        self._health = health
        self._aliases = AliasFollower(store, registry, health)
        self._followed: set[str] = set()
        self._metrics = metrics
        self._memory = memory
        self._follow_default = follow_default
        self._settle_seconds = settle_seconds
        self._stalled_seconds = stalled_seconds
        self._clock = clock
        self._sleep = sleep
        self._stale = StaleVersions(store, registry, ledger)
        self._started = False
        self._closed = False
        # One thread, since loading takes cores and memory from the served models; it lets other threads go first.
        self._loader = LoneThread("load", prepare_thread)

    @property
    def loading(self) -> bool:
        """Whether the loader's thread is at work."""
        return self._loader.busy

    def close(self) -> None:
        """Start no further load. One that runs goes on, and `loading` says so."""
        self._closed = True
        self._loader.close()

    async def on_loader(
        self, do: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run something on the loader's thread, after its present work."""
        return await asyncio.wrap_future(self._loader.submit(do, *args, **kwargs))

    async def watch(self, *, interval: float, debounce: float = 0.4) -> None:
        """Follow the store until cancelled; the arguments are those of `condconv_serve.serving.watch.changes`."""
        async with contextlib.aclosing(changes(self._store, interval=interval, debounce=debounce)) as changed:
            async for _ in changed:
                try:
                    await self.sync()
                except Exception:  # whatever it is, the next change gets a chance
                    logger.exception("the model store could not be followed")

    async def sync(self) -> None:
        """Load the versions that are wanted but not served, then retire those that aren't wanted any more."""
        await self.on_loader(self.sync_now)

    def sync_now(self) -> None:
        """The same on the calling thread. It must be the loader's, or the only thread so far."""
        try:
            with open_store(self._store) as catalog:
                names, hidden = catalog.models(), catalog.unreadable()
        except StoreUnavailable as error:  # it may be back in a moment; until then nothing changes
            for name in self._registry.models():
                self._stale.nothing_readable(name, str(error))
            return
        there = (*names, *hidden)
        if self._registry.default_model is None:
            self._follow_default(there)
        followed = followed_models(names, self._registry.models())
        for gone in set(self._registry.unserved()) - {*followed, *hidden}:
            self._forget(gone)
        for name in set(hidden) - set(followed):
            self._registry.set_unserved(name, unreadable(name))
        for name in set(followed) - self._followed:
            self._begin(name)
        for name in sorted(followed, key=self._urgency):
            try:
                self.sync_model(name)
            except (StoreUnavailable, BundleError) as error:  # the others may be readable
                logger.error("%s can't be read in the model store, so nothing changes of it: %s", name, error)
                if name not in self._followed:
                    self._registry.set_unserved(name, unreadable(name))
                self._stale.nothing_readable(name, f"{name} can't be read in the model store.")
        self._started = True
        self._follow_default(there)
        self._health.report()

    def _urgency(self, name: str) -> tuple[bool, bool]:
        """The default model comes first, so that no other one takes the memory that it needs, then the needed ones."""
        return name != self._registry.default_model, not self._health.needs(name)

    def _begin(self, name: str) -> None:
        """Say that a model is there, before it is loaded."""
        with contextlib.suppress(StoreUnavailable), open_store(self._store) as catalog:
            self._registry.set_unserved(name, still_loading(name, catalog.versions(name)))

    def _forget(self, name: str) -> None:
        """Forget a model that has gone and was never served."""
        self._registry.set_unserved(name, None)
        self._aliases.forget(name)
        self._followed.discard(name)

    def sync_model(self, name: str, *, also: Collection[str] = ()) -> None:
        """Do the same for one model, on the loader's thread. The versions `also` are wanted, too, this time."""
        memory = self._ledger.memory(name)
        with open_store(self._store) as catalog:
            self._sync_model(catalog, name, memory, also)

    def _sync_model(self, catalog: Catalog, name: str, memory: ModelMemory, also: Collection[str]) -> None:
        read = self._aliases.read(name)
        if name not in self._followed:
            self._registry.set_unserved(name, still_loading(name, catalog.versions(name)))
        for version in memory.lacking_memory():
            if self._memory.fits(memory.failed[version].needs or 0):
                del memory.failed[version]
        settled: dict[str, Fingerprint | None] = {}
        more = True
        while more:
            stored = Stored(versions=self._files(catalog, name), aliases=read.aliases)
            for action in reconcile(stored, self._served(name, settled), self._wishes(name, also)):
                match action:
                    case Forgive(version):
                        del memory.failed[version]
                    case WantAgain(version):
                        del memory.unwanted[version]
                    case WaitToSettle(version, files):
                        self._show_loading(name, version)
                        settled[version] = files if self._stays(name, version, files) else None
                    case Load(version, files):
                        self._show_loading(name, version)
                        self._load(name, version, files)
                    case SetAliases(in_force, broken):
                        more = False
                        missing = self._missing(name, stored, settled)
                        self._aliases.put_in_force(name, in_force, read, broken=broken, missing=missing)
                    case Retire(version):
                        self.retire(name, version)
        self._followed.add(name)
        self._give_up_on_copies(name, stored)
        self._stale.look(name, stored.versions)
        self._ledger.show_all(name, stored.versions)

    def _show_loading(self, name: str, version: str) -> None:
        if version not in self._registry.models().get(name, {}):
            now = self._registry.unserved().get(name, Unserved())
            versions = {**now.versions, version: version_loading(name, version)}
            self._registry.set_unserved(name, replace(now, versions=versions))

    def _missing(self, name: str, stored: Stored, settled: Mapping[str, Fingerprint | None]) -> Mapping[str, Trouble]:
        """The versions of the store that failed or are still being copied, and why they aren't served."""
        absent = set(stored.versions) - set(self._registry.models().get(name, {}))
        failed = self._ledger.memory(name).failed
        return {
            version: failed[version].trouble(name, version) if version in failed else version_loading(name, version)
            for version in absent & {*failed, *(v for v, files in settled.items() if files is None)}
        }

    def retire(self, name: str, version: str) -> None:
        """Stop serving a version, if it is served; on the loader's thread."""
        if version not in self._registry.models().get(name, {}):
            return

        def released() -> None:
            self._metrics.model_loads.labels(name, "unloaded").inc()
            self._ledger.show(name, version)
            if self._ledger.lacks_memory and not self._closed:
                with contextlib.suppress(RuntimeError):  # it has been closed just now
                    self._loader.submit(self.sync_now)

        logger.info("model %s version %s is retired", name, version)
        self._ledger.memory(name).loaded.pop(version, None)
        self._stale.retired(name, version)
        self._registry.unload(name, version, done=released)
        self._ledger.show(name, version)

    def _give_up_on_copies(self, name: str, stored: Stored) -> None:
        """A version whose files are incomplete, and stay so, has failed."""
        memory, now = self._ledger.memory(name), self._clock()
        for version, failure in list(memory.failed.items()):
            since = failure.arriving_since
            if since is None or stored.versions.get(version) != failure.files or now - since < self._stalled_seconds:
                continue
            reason = f"{failure.reason} Nothing has changed for {now - since:.0f} s."
            memory.failed[version] = replace(failure, reason=reason, arriving_since=None)
            self._tell_failure(name, version, reason)

    def _served(self, name: str, settled: Mapping[str, Fingerprint | None]) -> ServedVersions:
        memory = self._ledger.memory(name)
        return ServedVersions(
            versions={version: memory.loaded.get(version, ()) for version in self._registry.models().get(name, {})},
            failed={version: failure.files for version, failure in memory.failed.items()},
            aliases=self._registry.aliases(name),
            settled=settled,
        )

    def _wishes(self, name: str, also: Collection[str]) -> Wishes:
        memory = self._ledger.memory(name)
        return Wishes(
            newest=self._newest,
            pinned=frozenset({*memory.pinned, *also}),
            unwanted=dict(memory.unwanted),
            may_load=not self._closed,
        )

    def _files(self, catalog: Catalog, name: str) -> Mapping[str, Fingerprint]:
        # Without its manifest a version isn't in the catalogue. If it serves, its files are damaged rather than gone.
        damaged = {v for v in self._registry.models().get(name, {}) if (self._store / name / v).is_dir()}
        return {version: fingerprint(self._store / name / version) for version in {*catalog.versions(name), *damaged}}

    def _stays(self, name: str, version: str, files: Fingerprint) -> bool:
        if self._started:
            self._sleep(self._settle_seconds)
        return fingerprint(self._store / name / version) == files

    def _load(self, name: str, version: str, files: Fingerprint) -> None:
        memory, started = self._ledger.memory(name), time.monotonic()
        memory.loading = version
        self._ledger.show(name, version)
        path = self._store / name / version
        try:
            found = marks(path)
            bundle = open_bundle(path)
            logger.info("%s/%s: bundle checked in %.1f s", name, version, time.monotonic() - started)
            with self._memory.loading(bundle):
                self._registry.load(bundle)
        except Exception as error:
            known = isinstance(error, ServiceError)
            reason = str(error) if known else "It could not be loaded; the log says why."
            arriving = isinstance(error, BundleError) and error.incomplete
            memory.failed[version] = Failure(
                files,
                reason,
                needs=error.needs if isinstance(error, TooLittleMemory) else None,
                arriving_since=self._clock() if arriving else None,
            )
            if arriving:
                logger.info("model %s version %s is incomplete: %s", name, version, reason)
            else:
                self._tell_failure(name, version, error, exc_info=not known)
        else:
            memory.want_again(version)
            memory.loaded[version] = files
            self._stale.loaded(name, version, found)
            self._metrics.model_loads.labels(name, "loaded").inc()
            self._metrics.model_swap_seconds.observe(time.monotonic() - started)
        finally:
            memory.loading = None

    def _tell_failure(self, name: str, version: str, reason: object, *, exc_info: bool = False) -> None:
        self._metrics.model_loads.labels(name, "failed").inc()
        logger.error("model %s version %s can't be served: %s", name, version, reason, exc_info=exc_info)
