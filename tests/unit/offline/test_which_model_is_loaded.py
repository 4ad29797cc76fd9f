"""Which model `load` loads, and how."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import condconv_serve as cc
from condconv_serve import bootstrap, engine_planning
from condconv_serve.errors import (
    BundleError,
    ConfigurationError,
    InvalidParameter,
    ModelNotFound,
    NoDefaultModel,
    VersionNotFound,
)
from condconv_serve.settings import Settings
from condconv_serve.store import embedded
from condconv_serve.store.aliases import set_alias
from condconv_serve.store.embedded import embedded_store
from tests.contract.fake_server import load_fake
from tests.e2e.tiny_models import write_fake
from tests.pictures import photo

pytestmark = pytest.mark.usefixtures("without_openvino")
COFFEE = photo("coffee", (80, 60))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two models; the first one has three versions and aliases."""
    store = tmp_path_factory.mktemp("made") / "store"
    for version in (1, 2, 3):
        write_fake(store, "fake", version)
    set_alias(store, "fake", "old", {"1": 1})
    set_alias(store, "fake", "default", {"2": 1})
    write_fake(store, "other", 5)
    return store


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    monkeypatch.setenv("CONDCONV_NATIVE", "off")
    monkeypatch.setenv("CONDCONV_ENGINE", "tensorflow")
    monkeypatch.setattr(bootstrap, "load_model", load_fake)
    monkeypatch.chdir(tmp_path)


def loaded(*given, **options):
    with cc.load(*given, **options) as model:
        assert model.predict(COFFEE).label == f"class {model.version}", "the weights are this version's"
        return f"{model.name}/{model.version}"


@pytest.mark.parametrize(
    ("given", "version", "found"),
    [
        ("fake", None, "fake/2"),
        ("fake", 3, "fake/3"),
        ("fake", "3", "fake/3"),
        ("fake", "old", "fake/1"),
        ("fake/3", None, "fake/3"),
        ("fake/old", None, "fake/1"),
        (None, None, "fake/2"),
        (None, "old", "fake/1"),
        ("other", None, "other/5"),
    ],
)
def test_names(given, version, found, store):
    assert loaded(given, version=version, model_store=store) == found


def test_without_arguments(store, monkeypatch):
    shutil.copytree(store, "model_store")
    assert loaded() == "fake/2"
    monkeypatch.setenv("CONDCONV_DEFAULT_MODEL", "other")
    assert loaded() == "other/5"


@pytest.mark.parametrize(
    ("given", "version", "found"),
    [
        ("{store}/fake/3", None, "fake/3"),
        ("{store}/fake", None, "fake/2"),
        ("{store}/fake", "old", "fake/1"),
        ("{store}/fake/3", 3, "fake/3"),
        ("./store/fake/1", None, "fake/1"),
        ("fake/1", None, "fake/1"),
        ("store/fake", None, "fake/2"),
        ("../store/fake/1/", None, "fake/1"),
    ],
)
def test_directories(given, version, found, store, tmp_path, monkeypatch):
    """Wherever the working directory is, and without a store."""
    monkeypatch.chdir({"./": store.parent, "st": store.parent, "{s": tmp_path}.get(given[:2], store))
    path = given.format(store=store)
    assert loaded(path, version=version) == found
    assert loaded(Path(path), version=version) == found


def test_a_link_to_a_version(store, tmp_path):
    (tmp_path / "newest").symlink_to(store / "fake" / "3")
    assert loaded(tmp_path / "newest") == "fake/3"


def test_the_home_directory(store, monkeypatch):
    monkeypatch.setenv("HOME", str(store.parent))
    assert loaded("~/store/fake/1") == "fake/1"


def test_where_the_store_is(store, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_PACKAGE", tmp_path / "nowhere" / "service" / "package")
    with pytest.raises(BundleError, match="model_store is no directory"):
        cc.load("fake")
    write_fake(tmp_path / "nowhere" / "service" / "package" / "model_store", "shipped", 4)
    assert loaded() == "shipped/4"
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(store))
    assert loaded() == "fake/2"
    monkeypatch.delenv("CONDCONV_MODEL_STORE")
    write_fake(tmp_path / "model_store", "here", 6)
    assert loaded() == "here/6"


def test_the_project_s_own_store_comes_with_it():
    assert embedded_store() == Path(__file__).parents[3] / "model_store"


@pytest.mark.parametrize(
    ("given", "options", "error", "says"),
    [
        ("none", {}, ModelNotFound, "no model 'none' in the store; there are: fake, other"),
        ("fake/9", {}, VersionNotFound, "no version '9'; there are: 1, 2, 3, default, old"),
        ("fake", {"version": 9}, VersionNotFound, "no version '9'"),
        ("fake/1", {"version": 2}, InvalidParameter, "'fake/1' names a version already; leave out version='2'"),
        ("fake/", {}, InvalidParameter, "Write NAME, NAME/VERSION or NAME/ALIAS"),
        ("./fake", {}, BundleError, "There is no directory"),
        ("{store}", {}, BundleError, r"holds no bundle \(manifest.json\), and no versions of a model"),
        ("{store}/fake/3", {"version": 2}, InvalidParameter, "is version 3 already"),
        ("fake", {"precision": "float16"}, ConfigurationError, "^precision: .*'float32' or 'bfloat16', not 'float16'"),
        ("fake", {"streams": 0}, ConfigurationError, "^streams: .*1"),
        ("fake", {"device": "gpu"}, ConfigurationError, "There is no device 'gpu' here"),
        ("fake", {"model_store": "nowhere"}, BundleError, "model store nowhere is no directory"),
    ],
)
def test_refusals(given, options, error, says, store, monkeypatch):
    if options.get("device"):
        monkeypatch.setattr(engine_planning, "detect_machine", lambda *, look_for_accelerators: _machine())
    with pytest.raises(error, match=says):
        cc.load(given.format(store=store), **{"model_store": store} | options)


def _machine():
    from condconv_serve.runtime.devices import Machine

    return Machine(cores=1, cpu_bfloat16=False, openvino=False)


def test_loaded_by_several_threads_at_once(store, monkeypatch):
    """TensorFlow is imported, and networks are built, once at a time."""
    loading = []

    def load(*given, **options):
        loading.append(1)
        time.sleep(0.01)
        assert len(loading) == 1
        model = load_fake(*given, **options)
        loading.clear()
        return model

    monkeypatch.setattr(bootstrap, "load_model", load)
    with ThreadPoolExecutor(4) as threads:
        names = threads.map(lambda name: loaded(name, model_store=store), ["fake/1", "other", "fake", "fake/3"])
        assert list(names) == ["fake/1", "other/5", "fake/2", "fake/3"]


def test_the_store_in_the_home_directory(store, monkeypatch):
    monkeypatch.setenv("HOME", str(store.parent))
    assert loaded("other", model_store="~/store") == "other/5"


def test_no_default_model(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    os.remove(tmp_path / "copy" / "default.json")
    with pytest.raises(NoDefaultModel, match="No default model is set"):
        cc.load(model_store=tmp_path / "copy")


def test_a_wrong_setting_of_the_environment(store, monkeypatch):
    monkeypatch.setenv("CONDCONV_STREAMS", "many")
    with pytest.raises(ConfigurationError, match=r"^CONDCONV_STREAMS: "):
        cc.load("fake", model_store=store)
    assert loaded("fake", model_store=store, streams=1) == "fake/2"


def test_options_are_those_of_the_engine(store, monkeypatch):
    asked = []

    def load(bundle, plan, *, metrics=None):
        asked.append((plan.device, plan.precision, plan.engine, plan.native, plan.streams))
        return load_fake(bundle, plan, metrics=metrics)

    monkeypatch.setattr(bootstrap, "load_model", load)
    loaded(model_store=store, device="cpu", precision="float32", engine="tensorflow", native="off", streams=3)
    assert asked == [("cpu", "float32", "tensorflow", "off", 3)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": 5}, "model is a name or a directory, not int"),
        ({"model": b"fake"}, "model is a name or a directory, not bytes"),
        ({"model_store": ["store"]}, "model_store is a name or a directory, not list"),
    ],
)
def test_what_is_no_name(options, says):
    with pytest.raises(InvalidParameter, match=says):
        cc.load(**options)
