"""Remembers which versions of each model failed and which are wanted, and tells each version's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from condconv_serve.errors import BundleError
from condconv_serve.serving.fingerprint import Fingerprint
from condconv_serve.serving.open_store import open_store
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.unserved import BROKEN_SECONDS, LOADING_SECONDS, Trouble
from condconv_serve.serving.versions import StateMetrics, VersionStatus, state_of
from condconv_serve.store import Catalog
from condconv_serve.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version could not be loaded, and its files at that time.

    `needs` are the bytes of memory that it lacked; None if memory wasn't the reason. `arriving_since` is when its files
    were first seen as they are, on the monotonic clock, if somebody may still be copying them; else None.
    """

    files: Fingerprint
    reason: str
    needs: int | None = None
    arriving_since: float | None = None

    def trouble(self, name: str, version: str) -> Trouble:
        """What whoever asks for the version is told. More files may come in a moment, or more memory in a while."""
        seconds = BROKEN_SECONDS if self.arriving_since is None else LOADING_SECONDS
        return Trouble(f"Version {version} of {name} can't be served: {self.reason}", seconds)


@dataclass(slots=True)
class ModelMemory:
    """What is remembered about one model. Only the loader's thread changes it.

    Attributes:
        loaded: files of each version when it was last loaded.
        failed: the versions that could not be loaded.
        pinned: versions that somebody loaded; they are served in any case.
        unwanted: versions that somebody unloaded, each with its files at that time.
        stale: served versions that could not be loaded anew as they lie in the store, each with the reason.
        loading: the version that is being loaded now.
    """

    loaded: dict[str, Fingerprint] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    unwanted: dict[str, Fingerprint] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    loading: str | None = None

    def lacking_memory(self) -> list[str]:
        """The versions that could not be loaded for lack of memory."""
        return [version for version, failure in self.failed.items() if failure.needs is not None]

    def want_again(self, version: str) -> None:
        """Give a version that failed or was unloaded another chance."""
        self.failed.pop(version, None)
        self.unwanted.pop(version, None)


class VersionLedger:
    """What is remembered about each model, and the states of its versions, together with the registry.

    Any thread may ask. Only the loader's thread changes what `memory` returns.
    """

    def __init__(self, store: Path, registry: Registry, *, metrics: Metrics) -> None:
        """Start with nothing remembered.

        Args:
            store: directory of the model store.
            registry: what serves.
            metrics: shows the states.
        """
        self._store = store
        self._registry = registry
        self._memories: dict[str, ModelMemory] = defaultdict(ModelMemory)
        self._metrics = StateMetrics(metrics)

    def memory(self, name: str) -> ModelMemory:
        """What is remembered of a model."""
        return self._memories[name]

    def find(self, name: str, version: str | None = None) -> None:
        """Check that a model, or a version of it, is in the store.

        Raises:
            ModelNotFound, VersionNotFound: it isn't.
            StoreUnavailable: the store can't be read.
        """
        with open_store(self._store) as catalog:
            catalog.find(name, version)

    @property
    def lacks_memory(self) -> bool:
        """Whether a version waits for memory."""
        return any(memory.lacking_memory() for memory in list(self._memories.values()))

    def demand(self, name: str) -> None:
        """Check that a model is served.

        Raises:
            ModelNotFound: it isn't in the store.
            BundleError: why no version of it can be served.
        """
        if name not in self._registry.models():
            Catalog(self._store).find(name)
            failed = self._memories[name].failed
            raise BundleError(failed[max(failed, key=int)].reason if failed else f"{name} could not be loaded.")

    def status(self) -> Mapping[str, list[VersionStatus]]:
        """The state of every version of every model, served or not; oldest first.

        It reads the store; any thread may call it.
        """
        try:
            catalog = Catalog(self._store)
            lying = {name: catalog.versions(name) for name in catalog.models()}
        except (OSError, BundleError):
            lying = {}
        names = tuple(sorted({*lying, *self._registry.models(), *self._registry.retiring()}))
        return {name: self._statuses(name, lying.get(name, ())) for name in names}

    def status_of(self, name: str, version: str) -> VersionStatus:
        """The state of one version. If nothing else is known, it counts as lying in the store."""
        return next(status for status in self._statuses(name, [version]) if status.version == version)

    def show(self, name: str, version: str) -> None:
        """Show a version's state as a metric, after it has changed."""
        self._metrics.show(name, version, self.status_of(name, version).state)

    def show_all(self, name: str, lying: Collection[str]) -> None:
        """Show the states of a model's versions, and of no others. `lying` are those in the store."""
        now = self._statuses(name, lying)
        for status in now:
            self._metrics.show(name, status.version, status.state)
        self._metrics.keep(name, {status.version for status in now})

    def _statuses(self, name: str, lying: Collection[str]) -> list[VersionStatus]:
        """The states of these versions, and of all that are served or retiring; oldest first."""
        memory = self._memories.get(name, ModelMemory())
        # In the order in which a version goes through these states, so that one that moves on meanwhile is in one.
        loading = memory.loading
        served = self._registry.models().get(name, {})
        retiring = self._registry.retiring().get(name, ())
        failed, stale = dict(memory.failed), dict(memory.stale)
        return [
            VersionStatus(
                version,
                state_of(
                    loading=version == loading,
                    stale=version in served and version in stale,
                    serving=version in served,
                    retiring=version in retiring,
                    incomplete=version in failed and failed[version].arriving_since is not None,
                    failed=version in failed,
                ),
                failed[version].reason if version in failed else stale.get(version),
            )
            for version in sorted({*lying, *served, *retiring}, key=int)
        ]
