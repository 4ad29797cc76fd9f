"""What an admin may do: load and unload versions, change aliases, and see the state of each version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from condconv_serve.errors import BundleError, ServiceError, TooLittleMemory, VersionInUse
from condconv_serve.serving.fingerprint import fingerprint
from condconv_serve.serving.memory_check import RETRY_SECONDS
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_follower import StoreFollower
from condconv_serve.serving.version_ledger import VersionLedger
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import (
    NO_MIRROR,
    Alias,
    check_alias,
    delete_alias,
    find_alias,
    read_aliases,
    restore_aliases,
    roll_back,
    set_alias,
)


class VersionAdmin:
    """Carries out an admin's requests on the loader's thread, so they never meet a load that is half done."""

    def __init__(self, store: Path, registry: Registry, ledger: VersionLedger, follower: StoreFollower) -> None:
        """Wire the parts together.

        Args:
            store: directory of the model store.
            registry: what serves.
            ledger: remembers what is wanted, and what failed.
            follower: loads and retires.
        """
        self._store = store
        self._registry = registry
        self._ledger = ledger
        self._follower = follower

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """The state of every version of every model. It reads the store, so don't call it on the event loop."""
        return self._ledger.status()

    async def load(self, name: str, version: str) -> VersionStatus:
        """Load a version and keep it, whichever other versions there are. One that failed is tried again.

        Raises:
            ModelNotFound, VersionNotFound: it isn't in the store.
            BundleError: it can't be loaded.
            TooLittleMemory: it needs more memory than is left.
            StoreUnavailable: the store can't be read; this holds for all that an admin may do.
        """
        return await self._follower.on_loader(self._load, name, version)

    async def unload(self, name: str, version: str) -> VersionStatus:
        """Stop serving a version until somebody loads it or its files change.

        Raises:
            ModelNotFound, VersionNotFound: it is neither served nor in the store.
            VersionInUse: an alias points at it, or it is the last served version of the default model.
        """
        return await self._follower.on_loader(self._unload, name, version)

    async def set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        """Point an alias at versions, by weight, and mirror its requests to others, by percentage.

        Versions that aren't loaded are loaded first. Then all traffic moves at once.

        Raises:
            InvalidParameter: the alias's name, a weight or a percentage is not allowed.
            ModelNotFound, VersionNotFound: a version isn't in the store.
            BundleError: a version can't be loaded; the alias stays as it was.
            StoreNotWritable: the store can't be written to.
        """
        check_alias(alias, versions, mirror=mirror)
        return await self._follower.on_loader(self._set_alias, name, alias, versions, mirror=mirror)

    async def roll_back(self, name: str, alias: str) -> Alias:
        """Point an alias back to where it pointed before.

        Raises:
            ModelNotFound, AliasNotFound: there is no such model or alias.
            InvalidParameter: the alias has never pointed anywhere else.
            VersionNotFound, BundleError, StoreNotWritable: as for `set_alias`.
        """
        return await self._follower.on_loader(self._roll_back, name, alias)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias.

        Raises:
            ModelNotFound, AliasNotFound: there is no such model or alias.
            StoreNotWritable: the store can't be written to.
        """
        await self._follower.on_loader(self._delete_alias, name, alias)

    def _load(self, name: str, version: str) -> VersionStatus:
        self._ledger.find(name, version)
        memory = self._ledger.memory(name)
        memory.want_again(version)
        memory.pinned.add(version)
        self._follower.sync_model(name)
        try:
            self._demand_served(name, [version])
        except ServiceError:
            memory.pinned.discard(version)
            raise
        return self._ledger.status_of(name, version)

    def _unload(self, name: str, version: str) -> VersionStatus:
        served = self._registry.models().get(name, {})
        if version not in served:
            self._ledger.find(name, version)
        if users := sorted(a for a, alias in self._registry.aliases(name).items() if version in alias.versions):
            raise VersionInUse(f"Version {version} of {name} is what {', '.join(users)} points at.")
        if name == self._registry.default_model and set(served) == {version}:
            raise VersionInUse(f"Version {version} is all that is served of {name}, the default model.")
        memory = self._ledger.memory(name)
        memory.pinned.discard(version)
        memory.unwanted[version] = memory.loaded.get(version) or fingerprint(self._store / name / version)
        self._follower.retire(name, version)
        return self._ledger.status_of(name, version)

    def _set_alias(
        self, name: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
    ) -> Alias:
        asked = {*versions, *mirror}
        for version in asked:
            self._ledger.find(name, version)
        for version in asked:
            self._ledger.memory(name).want_again(version)
        self._follower.sync_model(name, also=asked)
        self._demand_served(name, sorted(asked, key=int))
        restore_aliases(self._store, name, self._registry.aliases(name))
        changed = set_alias(self._store, name, alias, versions, mirror=mirror)
        self._follower.sync_model(name)
        return changed

    def _roll_back(self, name: str, alias: str) -> Alias:
        self._ledger.find(name)
        restore_aliases(self._store, name, self._registry.aliases(name))
        now = find_alias(read_aliases(self._store, name), name, alias)
        if now.previous is None:
            return roll_back(self._store, name, alias)  # which says so
        return self._set_alias(name, alias, now.previous)

    def _delete_alias(self, name: str, alias: str) -> None:
        self._ledger.find(name)
        restore_aliases(self._store, name, self._registry.aliases(name))
        delete_alias(self._store, name, alias)
        self._follower.sync_model(name)

    def _demand_served(self, name: str, versions: Iterable[str]) -> None:
        """Check that versions that were just loaded are served.

        Raises:
            VersionNotFound: one has gone from the store meanwhile.
            BundleError: one can't be loaded, or its files are still changing.
            TooLittleMemory: one needs more memory than is left.
        """
        served = self._registry.models().get(name, {})
        for version in versions:
            if version in served:
                continue
            failed = self._ledger.memory(name).failed.get(version)
            if failed is not None and failed.needs is not None:
                raise TooLittleMemory(failed.reason, needs=failed.needs, retry_after=RETRY_SECONDS)
            if failed is not None:
                raise BundleError(failed.reason)
            self._ledger.find(name, version)
            raise BundleError(f"{name}/{version}: its files are still changing; try again when they are complete.")
