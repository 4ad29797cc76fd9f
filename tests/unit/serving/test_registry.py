import threading
import time
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import NativeUse
from condconv_serve.domain.caching import CacheResult
from condconv_serve.errors import BundleError, ModelNotFound, VersionNotFound
from condconv_serve.serving.registry import Registry
from condconv_serve.store import open_bundle, write_bundle
from condconv_serve.store.aliases import Alias
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FunctionEngine, load_shades
from tests.unit.serving.models import wait_for_releases
from tests.unit.store.samples import new_bundle


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def bundle_of(tmp_path):
    def write(name, version):
        return open_bundle(write_bundle(tmp_path, new_bundle(name=name, version=version)))

    return write


def registry_of(metrics, *bundles, default_model="pear", load=load_shades, warm_up_sizes=(1,), **options):
    # Collecting garbage takes long once other tests have imported TensorFlow.
    options.setdefault("release_memory", lambda: None)
    registry = Registry(
        load, default_model=default_model, warm_up_sizes=warm_up_sizes, streams=2, metrics=metrics, **options
    )
    for bundle in bundles:
        registry.load(bundle)
    return registry


@pytest.fixture
def registry(metrics, bundle_of):
    places = [("pear", "2"), ("apple", "10"), ("apple", "9"), ("apple", "1")]
    return registry_of(metrics, *(bundle_of(*place) for place in places))


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        (None, None, ("pear", "2")),
        ("", None, ("pear", "2")),
        (None, "2", ("pear", "2")),
        ("apple", None, ("apple", "10")),
        ("apple", "9", ("apple", "9")),
        ("apple", "1", ("apple", "1")),
    ],
)
def test_get(name, version, found, registry):
    model = registry.get(name, version)
    assert (model.name, model.version) == found
    assert registry.get(name, version) is model


@pytest.mark.parametrize("chosen", ["apple", "pear"])
def test_the_default_model_is_the_chosen_one_whatever_is_loaded_first(chosen, metrics, bundle_of):
    registry = registry_of(metrics, bundle_of("pear", "1"), bundle_of("apple", "1"), default_model=chosen)
    assert registry.default_model == chosen
    assert registry.get().name == chosen
    assert registry.get("").name == chosen


@pytest.mark.parametrize("name", ["plum", "../apple", "apple/10", "APPLE"])
def test_unknown_models(name, registry):
    with pytest.raises(ModelNotFound) as caught:
        registry.get(name)
    assert str(caught.value) == f"Model {name!r} is not served; served are: pear, apple."


@pytest.mark.parametrize("version", ["2", "01", "latest", "../9"])
def test_unknown_versions(version, registry):
    with pytest.raises(VersionNotFound) as caught:
        registry.get("apple", version)
    assert str(caught.value) == f"Model apple is not served in version {version!r}; served are: 1, 9, 10."


@pytest.mark.parametrize("name", [None, "apple"])
def test_nothing_is_served_yet(name, metrics):
    with pytest.raises(ModelNotFound, match=r"served are: none\.$"):
        registry_of(metrics).get(name)


def test_all_models(registry):
    assert {name: sorted(versions) for name, versions in registry.models().items()} == {
        "pear": ["2"],
        "apple": ["1", "10", "9"],
    }


def test_every_batch_size_is_warmed_up_on_every_stream(metrics, bundle_of):
    model = registry_of(metrics, bundle_of("pear", "1"), warm_up_sizes=range(1, 4)).get()
    assert model.engine.calls == {((size, 64, 64, 3), stream): 1 for size in (1, 2, 3) for stream in (0, 1)}


@pytest.mark.parametrize("breaks", ["loading", "warm-up"])
def test_what_cannot_be_loaded_is_not_served(breaks, metrics, bundle_of):
    def compute(rows, stream):
        raise BundleError("broken")

    engine = FunctionEngine(compute)

    def load_broken(bundle):
        model = load_shades(bundle)
        if bundle.manifest.version != "2":
            return model
        if breaks == "loading":
            raise BundleError("broken")
        return replace(model, engine=engine)

    registry = registry_of(metrics, bundle_of("pear", "1"), load=load_broken)
    with pytest.raises(BundleError):
        registry.load(bundle_of("pear", "2"))
    assert engine.closed.is_set() == (breaks == "warm-up")
    engine = FunctionEngine(compute)
    with pytest.raises(BundleError):
        registry.load(bundle_of("apple", "2"))
    assert registry.get("pear").version == "1"
    assert list(registry.models()) == ["pear"]
    with pytest.raises(VersionNotFound):
        registry.get("pear", "2")


def test_loading_again_replaces(registry, bundle_of, tmp_path):
    before = registry.get("pear")
    again = registry.load(open_bundle(tmp_path / "pear" / "2"))
    assert registry.get("pear") is again
    assert again is not before
    assert before.engine.closed.wait(60)
    assert not again.engine.closed.is_set()


def test_metrics(registry, metrics):
    labels = {"model": "apple", "version": "9", "architecture": "efficientnet-lite0-condconv-4e"}
    engine = {"engine": "numpy", "precision": "float32", "device": "CPU"}
    assert metrics.registry.get_sample_value("condconv_model_info", labels | engine) == 1
    seconds = {"model": "apple", "version": "9"}
    assert metrics.registry.get_sample_value("condconv_model_load_seconds", seconds) > 0


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(("condconv_cache_rows_total", {"result": result}) for result in get_args(CacheResult)),
        ("condconv_batch_failures_total", {"reason": "error"}),
        ("condconv_rows_total", {"outcome": "deadline_exceeded", "deadline": "service"}),
    ],
)
def test_counters_begin_with_zero_so_that_the_first_increase_is_seen(name, labels, registry, metrics):
    assert metrics.registry.get_sample_value(name, {"model": "pear", **labels}) == 0


def test_native_metrics_follow_what_computes_a_version_now(metrics, bundle_of):
    uses = [
        NativeUse(state="used", isa="avx2", native_layers=60, tensorflow_layers=2),
        NativeUse(state="differs", reason="its logits differ"),
    ]

    def load(bundle):
        model = load_shades(bundle)
        return replace(model, computed_by=replace(model.computed_by, native=uses.pop(0)))

    def series(name):
        return {
            tuple(sample.labels[label] for label in sample.labels if label not in ("model", "version")): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        }

    bundle = bundle_of("pear", "1")
    registry = registry_of(metrics, bundle, load=load)
    assert series("condconv_native_info") == {("used", "avx2"): 1}
    assert series("condconv_native_layers") == {("native",): 60, ("tensorflow",): 2}
    registry.load(bundle)
    assert series("condconv_native_info") == {("differs", ""): 1}
    assert series("condconv_native_layers") == {("native",): 0, ("tensorflow",): 0}
    registry.unload("pear", "1")
    assert series("condconv_native_info") == series("condconv_native_layers") == {}


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_an_unloaded_version_is_not_served_but_the_others_are(registry, metrics):
    done = threading.Event()
    newest = registry.get("apple")
    registry.unload("apple", "10", done=done.set)
    assert registry.get("apple").version == "9"
    assert done.wait(60)
    assert newest.engine.closed.is_set()
    with pytest.raises(VersionNotFound, match=r"served are: 1, 9\.$"):
        registry.get("apple", "10")
    assert value(metrics, "condconv_model_load_seconds", model="apple", version="10") is None


def test_without_its_last_version_a_model_is_not_served(registry):
    registry.unload("pear", "2")
    registry.unload("pear", "2")  # once more does nothing
    with pytest.raises(ModelNotFound, match=r"served are: apple\.$"):
        registry.get("pear")


def test_a_version_is_released_only_after_its_last_lease(registry):
    with registry.lease("apple") as model:
        with registry.lease("apple", "10") as same:
            assert same is model
            registry.unload("apple", "10")
        held = registry.hold(model)
    assert not model.engine.closed.wait(0.1)
    held.release()
    held.release()
    assert model.engine.closed.wait(60)


def test_a_version_with_a_lease_is_retiring(registry):
    done = threading.Event()
    with registry.lease("apple", "1"):
        registry.unload("apple", "1", done=done.set)
        assert registry.retiring() == {"apple": {"1"}}
    assert done.wait(60)
    assert registry.retiring() == {}


def test_a_version_is_retiring_until_its_memory_has_been_released(metrics, bundle_of):
    may_release, done = threading.Event(), threading.Event()
    may_release.set()
    registry = registry_of(metrics, bundle_of("pear", "1"), release_memory=lambda: may_release.wait(60))
    may_release.clear()
    registry.unload("pear", "1", done=done.set)
    assert registry.retiring() == {"pear": {"1"}}
    may_release.set()
    assert done.wait(60)
    assert registry.retiring() == {}


def test_memory_is_given_back_after_each_load_and_release(metrics, bundle_of):
    given_back, done = [], threading.Event()
    registry = registry_of(metrics, bundle_of("pear", "1"), release_memory=lambda: given_back.append("back"))
    assert given_back == ["back"] * 2, "once more after the warm-up"
    registry.unload("pear", "1", done=done.set)
    assert done.wait(60)
    assert given_back == ["back"] * 3


def test_what_has_gone_is_told(metrics, bundle_of, tmp_path):
    gone, done = [], threading.Event()
    registry = registry_of(metrics, bundle_of("pear", "1"), on_gone=lambda *place: gone.append(place))
    registry.load(open_bundle(tmp_path / "pear" / "1"))
    assert gone == [("pear", "1")], "replaced"
    wait_for_releases()  # while nothing is served in its place, it would be told once more
    registry.unload("pear", "1", done=done.set)
    assert done.wait(60)
    assert gone == [("pear", "1")] * 2


def test_each_load_that_nobody_holds_any_more_is_told(metrics, bundle_of, tmp_path):
    released, done = [], threading.Event()
    registry = registry_of(metrics, bundle_of("pear", "1"), on_released=lambda model: released.append(model))
    first = registry.get("pear")
    with registry.lease("pear"):
        second = registry.load(open_bundle(tmp_path / "pear" / "1"))
        assert released == [], "it may still answer"
    registry.unload("pear", "1", done=done.set)
    assert done.wait(60)
    deadline = time.monotonic() + 60
    while len(released) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert set(released) == {first, second}


def test_aliases_choose_the_version(registry):
    registry.set_aliases("apple", {"stable": Alias(versions={"1": 1, "9": 3})})
    chosen = Counter(registry.get("apple", "stable", key=str(i)).version for i in range(2000))
    assert set(chosen) == {"1", "9"}
    assert 0.70 < chosen["9"] / 2000 < 0.80
    assert {registry.get("apple", "stable", key="somebody").version for _ in range(20)} in ({"1"}, {"9"})
    assert registry.get("apple").version == "10"
    with pytest.raises(VersionNotFound, match=r"served are: 1, 9, 10, stable\.$"):
        registry.get("apple", "canary")


def test_the_default_alias_is_for_requests_that_name_no_version(registry):
    registry.set_aliases("apple", {"default": Alias(versions={"9": 1})})
    assert registry.get("apple").version == "9"
    assert registry.get("apple", "10").version == "10"
    registry.set_aliases("apple", {})
    assert registry.get("apple").version == "10"


def test_a_version_that_is_unloaded_while_it_is_being_leased(metrics, bundle_of):
    """It was looked up, then unloaded and closed before the lease began: the caller gets the next one."""

    class Late(Registry):
        unlucky = True

        def get(self, *args, **options):
            model = super().get(*args, **options)
            if self.unlucky:
                self.unlucky = False
                self.unload(model.name, model.version)
                assert model.engine.closed.wait(60)
            return model

    registry = Late(
        load_shades,
        default_model="pear",
        warm_up_sizes=(1,),
        streams=1,
        metrics=metrics,
        release_memory=lambda: None,
    )
    for version in ("1", "2"):
        registry.load(bundle_of("pear", version))
    with registry.lease("pear") as model:
        assert model.version == "1"
        assert not model.engine.closed.is_set()


def test_readers_see_one_version_or_the_other_while_versions_change(registry, bundle_of):
    """Leases taken while versions come and go are never of an engine that has been closed."""
    stop, problems = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                with registry.lease("apple") as model:
                    if model.engine.closed.is_set():
                        problems.append(f"{model.version} was closed")
            except Exception as error:
                problems.append(error)
            time.sleep(0.0001)  # or else whoever changes the versions hardly gets a turn

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for version in range(11, 31):
        registry.load(bundle_of("apple", str(version)))
        registry.unload("apple", str(version - 1))
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert registry.get("apple").version == "30"
