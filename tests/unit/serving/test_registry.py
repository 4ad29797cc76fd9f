import threading
from collections import Counter

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import EngineDescription, ModelOutput, ServedModel
from condconv_serve.errors import BundleError, ModelNotFound, VersionNotFound
from condconv_serve.serving.registry import Registry
from condconv_serve.store import open_bundle, read_labels, write_bundle
from condconv_serve.store.aliases import Alias
from condconv_serve.telemetry.metrics import Metrics
from tests.unit.store.samples import new_bundle


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Collecting garbage takes long once other tests have imported TensorFlow."""
    monkeypatch.setattr("condconv_serve.serving.registry.release_memory", lambda: None)


class Engine:
    """Notes the size and the stream of each batch."""

    def __init__(self):
        self.calls = Counter()
        self.closed = threading.Event()

    def __call__(self, rows, stream=0, /):
        assert rows.dtype == np.uint8
        self.calls[rows.shape, stream] += 1
        return ModelOutput(np.zeros((len(rows), 3), np.float32), np.zeros((len(rows), 0, 0), np.float32))

    def close(self):
        self.closed.set()


def load(bundle):
    manifest = bundle.manifest
    return ServedModel(
        name=manifest.name,
        version=manifest.version,
        engine=Engine(),
        labels=read_labels(bundle),
        preprocessing=manifest.preprocessing.to_domain(),
        routing_blocks=(),
        num_experts=0,
        computed_by=EngineDescription(engine="numpy", precision="float32", device="CPU", reason="a fake"),
        description={"architecture": {"name": manifest.architecture.name}},
    )


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def bundle_of(tmp_path):
    def write(name, version):
        return open_bundle(write_bundle(tmp_path, new_bundle(name=name, version=version)))

    return write


def registry_of(metrics, *bundles, default_model=None, load=load, warm_up_sizes=(1,)):
    registry = Registry(load, default_model=default_model, warm_up_sizes=warm_up_sizes, streams=2, metrics=metrics)
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


def test_the_default_model_can_be_chosen(metrics, bundle_of):
    registry = registry_of(metrics, bundle_of("pear", "1"), bundle_of("apple", "1"), default_model="apple")
    assert registry.default_model == "apple"
    assert registry.get().name == "apple"


def test_the_first_model_is_the_default_one(registry):
    assert registry.default_model == "pear"


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
    def load_broken(bundle):
        model = load(bundle)
        if bundle.manifest.version == "2":
            if breaks == "loading":
                raise BundleError("broken")
            model.engine.calls = None
        return model

    registry = registry_of(metrics, bundle_of("pear", "1"), load=load_broken)
    with pytest.raises((BundleError, TypeError)):
        registry.load(bundle_of("pear", "2"))
    with pytest.raises((BundleError, TypeError)):
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
    assert before.engine.closed.wait(5)
    assert not again.engine.closed.is_set()


def test_metrics(registry, metrics):
    labels = {"model": "apple", "version": "9", "architecture": "efficientnet-lite0-condconv-4e"}
    engine = {"engine": "numpy", "precision": "float32", "device": "CPU"}
    assert metrics.registry.get_sample_value("condconv_model_info", labels | engine) == 1
    seconds = {"model": "apple", "version": "9"}
    assert metrics.registry.get_sample_value("condconv_model_load_seconds", seconds) > 0


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_an_unloaded_version_is_not_served_but_the_others_are(registry, metrics):
    done = threading.Event()
    newest = registry.get("apple")
    registry.unload("apple", "10", done=done.set)
    assert registry.get("apple").version == "9"
    assert done.wait(5)
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
    assert model.engine.closed.wait(5)


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

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for version in range(11, 51):
        registry.load(bundle_of("apple", str(version)))
        registry.unload("apple", str(version - 1))
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert registry.get("apple").version == "50"
