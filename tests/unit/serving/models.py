"""Models that compute nothing, and a store with all that makes them served."""

import threading

from prometheus_client import CollectorRegistry

from condconv_serve.serving.default_model import DefaultModel
from condconv_serve.serving.memory_check import MemoryCheck
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_follower import StoreFollower
from condconv_serve.serving.store_health import StoreHealth
from condconv_serve.serving.version_admin import VersionAdmin
from condconv_serve.serving.version_ledger import VersionLedger
from condconv_serve.store import write_bundle
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import load_shades
from tests.unit.store.samples import new_bundle


def wait_for_releases():
    """Wait until all that has been retired is released, and whoever wants to know has been told."""
    for thread in threading.enumerate():
        if thread.name.startswith("release-"):
            thread.join(60)


class Place:
    """A store, what serves it, and what keeps the two equal.

    `pauses` are the seconds that were waited, `now` is the time in seconds. A load needs `needs[version]` bytes, and
    `left` bytes are left.
    """

    def __init__(self, path, *, newest=1, default="pear", asked=None, at_start=("pear",), ready_models=None):
        self.needs = {}
        self.left = 100
        self.now = 1000.0
        self.on_release = lambda: None
        self.path = path
        self.metrics = Metrics(CollectorRegistry())
        self.broken = set()
        self.greedy = set()
        self.pauses = []
        self.while_waiting = self.while_loading = lambda: None
        self.registry = Registry(
            self._load,
            default_model=default,
            warm_up_sizes=(1,),
            streams=1,
            metrics=self.metrics,
            release_memory=lambda: self.on_release(),
        )
        self.ledger = VersionLedger(path, self.registry, metrics=self.metrics)
        self.health = StoreHealth(self.registry, metrics=self.metrics, at_start=at_start, ready_models=ready_models)
        self.default = DefaultModel(path, self.registry, self.health, metrics=self.metrics, asked=asked)
        self.follower = StoreFollower(
            path,
            self.registry,
            self.ledger,
            newest=newest,
            health=self.health,
            metrics=self.metrics,
            memory=MemoryCheck(
                lambda bundle: self.needs.get(bundle.manifest.version, 0), left=lambda: self.left, use=lambda: None
            ),
            follow_default=self.default.look,
            settle_seconds=0.5,
            stalled_seconds=120.0,
            clock=lambda: self.now,
            sleep=self._sleep,
            prepare_thread=lambda: None,
        )
        self.admin = VersionAdmin(path, self.registry, self.ledger, self.follower)

    def _load(self, bundle):
        if bundle.manifest.version in self.greedy:
            raise MemoryError
        self.while_loading()
        if bundle.manifest.version in self.broken:
            raise RuntimeError("/secret/place is broken")
        return load_shades(bundle)

    def _sleep(self, seconds):
        self.pauses.append(seconds)
        self.while_waiting()

    def add(self, name, version):
        return write_bundle(self.path, new_bundle(name=name, version=version))

    def served(self, name="pear"):
        return sorted(self.registry.models().get(name, {}), key=int)

    def states(self, name="pear"):
        wait_for_releases()  # or else a version that is released may still be retiring
        return {status.version: status.state for status in self.ledger.status().get(name, [])}

    def reason(self, version, name="pear"):
        (found,) = [status.reason for status in self.ledger.status()[name] if status.version == version]
        return found

    def loads(self, outcome, name="pear"):
        return self.metrics.registry.get_sample_value("condconv_model_loads_total", {"model": name, "outcome": outcome})
