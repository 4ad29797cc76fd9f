"""What is served: models are found by name, version or alias, and kept loaded while somebody uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from condconv_serve.domain import ModelSource, ServedModel
from condconv_serve.errors import ModelNotFound, VersionNotFound
from condconv_serve.serving.leases import Lease, Leases
from condconv_serve.serving.unserved import Unserved
from condconv_serve.store.aliases import DEFAULT_ALIAS, Alias
from condconv_serve.store.default import Default

_NOTHING = Unserved()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served at one time.

    Attributes:
        default: the model for requests that name none, or why there is none.
        models: by name and version.
        aliases: those in force, by model and name.
        unserved: what can't be answered of each model that lies in the store, by model.
    """

    default: Default
    models: Mapping[str, Mapping[str, ServedModel]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, Alias]] = field(default_factory=dict)
    unserved: Mapping[str, Unserved] = field(default_factory=dict)

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        """See `condconv_serve.domain.ModelSource.get`."""
        name = name or self.default.demand()
        version = version or None
        versions, aliases = self.models.get(name, {}), self.aliases.get(name, {})
        if alias := aliases.get(version or DEFAULT_ALIAS):
            version = alias.choose(key)
        elif version not in versions and (trouble := self.unserved.get(name, _NOTHING).of(version)):
            raise trouble.error()
        if not versions:
            raise ModelNotFound(f"Model {name!r} is not served; served are: {', '.join(self.models) or 'none'}.")
        version = version or max(versions, key=int)
        if version not in versions:
            known = ", ".join([*sorted(versions, key=int), *sorted(aliases)])
            raise VersionNotFound(f"Model {name} is not served in version {version!r}; served are: {known}.")
        return versions[version]

    def holds(self, model: ServedModel) -> bool:
        """Whether this very copy of a version is served."""
        return self.models.get(model.name, {}).get(model.version) is model


class LeasedModels(ModelSource):
    """The models that this process can answer with.

    Thread-safe: the whole state is replaced at once, so a reader sees it before a change or after it.

    Attributes:
        served: the state.
    """

    def __init__(self, served: Served, *, release_memory: Callable[[], None]) -> None:
        """Start with a state; `release_memory` gives freed memory back to the system after a model was closed."""
        self.served = served
        self._lock = threading.Lock()
        self._leases = Leases(release_memory=release_memory)
        self._on_change: Callable[[], None] = lambda: None

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call a function after each change from now on, on any thread."""
        self._on_change = on_change

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        """See `condconv_serve.domain.ModelSource.get`."""
        return self.served.get(name, version, key=key)

    def lease(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> Lease:
        """See `condconv_serve.domain.ModelSource.lease`."""
        while True:
            model = self.get(name, version, key=key)
            lease = self._leases.hold(model)
            if self.served.holds(model):
                return lease
            lease.release()  # it has just been retired

    def hold(self, model: ServedModel) -> Lease:
        """Keep a model loaded for longer than a lease that the caller already has."""
        return self._leases.hold(model)

    def aliases(self, name: str) -> Mapping[str, Alias]:
        """The aliases of a model that are in force, by name."""
        return self.served.aliases.get(name, {})

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        """All served models, by name and version."""
        return self.served.models

    @property
    def default_model(self) -> str | None:
        """Name of the model for requests that name none."""
        return self.served.default.name

    def _change(self, make: Callable[[Served], Mapping[str, Any]]) -> Served:
        """Replace what a function says of the state, and return the state before."""
        with self._lock:
            before = self.served
            self.served = replace(before, **make(before))
        self._on_change()
        return before
