"""The state of one version of a model, and how metrics show it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from condconv_serve.telemetry.metrics import Metrics

State = Literal["available", "loading", "serving", "stale", "retiring", "incomplete", "failed"]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """The state of one version.

    `available`: it is in the store, but not loaded. `retiring`: it gets no new requests, but still answers old ones.
    `incomplete`: its files are still being copied. `stale`: it serves from memory, but its files are gone or can't be
    loaded, so it would not be there after a restart.
    """

    version: str
    state: State
    reason: str | None = None


def state_of(*, loading: bool, stale: bool, serving: bool, retiring: bool, incomplete: bool, failed: bool) -> State:
    """Of the states that apply, the one that says most."""
    if loading:
        return "loading"
    if stale:
        return "stale"
    if serving:
        return "serving"
    if retiring:
        return "retiring"
    if incomplete:
        return "incomplete"
    return "failed" if failed else "available"


class StateMetrics:
    """Shows the state of each existing version as a metric. Thread-safe."""

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
