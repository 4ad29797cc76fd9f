"""Keeps versions loaded for a while after they were replaced: an ingress replica hears of it later than they go."""

from __future__ import annotations

import time
from collections.abc import Callable

from condconv_serve.domain import ServedModel
from condconv_serve.errors import ServiceError
from condconv_serve.serving.leases import Lease
from condconv_serve.serving.registry import Registry

LINGER_SECONDS = 10.0


class HeldModels:
    """The served versions, and those that were served until a moment ago. It is used on one event loop."""

    def __init__(self, registry: Registry, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Hold nothing yet; `clock` is monotonic, in seconds."""
        self._registry = registry
        self._clock = clock
        self._leases: dict[tuple[str, str], Lease] = {}
        self._going: list[tuple[float, Lease]] = []

    def look(self) -> None:
        """Hold what is served now, and let go what was replaced a while ago. It is cheap."""
        now = self._clock()
        for (name, version), lease in list(self._leases.items()):
            if not self._registry.served.holds(lease.model):
                self._going.append((now + LINGER_SECONDS, self._leases.pop((name, version))))
        for name, versions in self._registry.models().items():
            for version in versions:
                if (name, version) not in self._leases:
                    self._hold(name, version)
        for until, lease in self._going:
            if until <= now:
                lease.release()
        self._going = [(until, lease) for until, lease in self._going if until > now]

    def find(self, name: str, version: str) -> ServedModel | None:
        """The newest copy of a version that is held; None if there is none."""
        if lease := self._leases.get((name, version)):
            return lease.model
        going = (lease.model for _, lease in reversed(self._going))
        return next((model for model in going if (model.name, model.version) == (name, version)), None)

    def release(self) -> None:
        """Let go everything."""
        for lease in [*self._leases.values(), *(lease for _, lease in self._going)]:
            lease.release()
        self._leases, self._going = {}, []

    def _hold(self, name: str, version: str) -> None:
        try:
            lease = self._registry.lease(name, version)
        except ServiceError:  # it has just gone
            return
        if (lease.model.name, lease.model.version) == (name, version):
            self._leases[name, version] = lease
        else:  # an alias of this name points elsewhere
            lease.release()
