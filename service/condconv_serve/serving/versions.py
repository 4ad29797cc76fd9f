"""How one version of a model is doing, and how metrics are told."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from condconv_serve.telemetry.metrics import Metrics

State = Literal["available", "loading", "serving", "retiring", "failed"]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """How one version is doing.

    `available` means that it lies in the store, but isn't loaded. `retiring` means that it gets no new requests, but
    still answers old ones. A version can be `serving` and have a `reason` all the same: the files that lie in the store
    now could not be loaded, so the copy that was loaded before is still served.
    """

    version: str
    state: State
    reason: str | None = None


def state_of(*, loading: bool, serving: bool, retiring: bool, failed: bool) -> State:
    """The one state that tells most of a version, of those that hold."""
    if loading:
        return "loading"
    if serving:
        return "serving"
    if retiring:
        return "retiring"
    return "failed" if failed else "available"


class StateMetrics:
    """Shows the state of each version as a metric, and only of versions that there are. Thread-safe."""

    def __init__(self, metrics: Metrics) -> None:
        """Show nothing yet."""
        self._gauge = metrics.model_version_state
        self._shown: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def show(self, name: str, version: str, state: State) -> None:
        """Show the state of one version, in place of the one shown before."""
        with self._lock:
            self._shown[name].add(version)
            for each in get_args(State):
                self._gauge.labels(name, version, each).set(int(each == state))

    def keep(self, name: str, versions: Collection[str]) -> None:
        """Show no other versions of a model any more."""
        with self._lock:
            for version in self._shown[name] - set(versions):
                for each in get_args(State):
                    self._gauge.remove(name, version, each)
            self._shown[name] &= set(versions)
