import asyncio
import os
import shutil
import threading

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.errors import (
    AliasNotFound,
    BundleError,
    InvalidParameter,
    ModelNotFound,
    VersionInUse,
    VersionNotFound,
)
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_sync import StoreSync
from condconv_serve.store import Catalog, write_bundle
from condconv_serve.store.aliases import read_aliases, set_alias
from condconv_serve.telemetry.metrics import Metrics
from tests.unit.serving.test_registry import load
from tests.unit.store.samples import new_bundle, rewrite


class Place:
    """A store, what serves it, and what keeps the two equal."""

    def __init__(self, path, *, newest=1):
        self.path = path
        self.metrics = Metrics(CollectorRegistry())
        self.broken = set()
        self.registry = Registry(self._load, default_model="pear", warm_up_sizes=(1,), streams=1, metrics=self.metrics)
        self.sync = StoreSync(path, self.registry, newest=newest, metrics=self.metrics)

    def _load(self, bundle):
        if bundle.manifest.version in self.broken:
            raise RuntimeError("/secret/place is broken")
        return load(bundle)

    def add(self, name, version):
        return write_bundle(self.path, new_bundle(name=name, version=version))

    def served(self, name="pear"):
        return sorted(self.registry.models().get(name, {}), key=int)

    def states(self, name="pear"):
        return {status.version: status.state for status in self.sync.status().get(name, [])}

    def reason(self, version, name="pear"):
        (found,) = [status.reason for status in self.sync.status()[name] if status.version == version]
        return found

    def loads(self, outcome, name="pear"):
        return self.metrics.registry.get_sample_value("condconv_model_loads_total", {"model": name, "outcome": outcome})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("condconv_serve.serving.registry.release_memory", lambda: None)
    monkeypatch.setattr("condconv_serve.serving.store_sync.yield_to_other_threads", lambda: None)


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.sync.sync_now()
    yield place
    place.sync.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what changes is on other threads
            await asyncio.sleep(0.01)


def test_the_newest_version_of_each_model_is_served(place):
    place.add("apple", "3")
    place.add("pear", "10")
    place.add("pear", "9")
    place.sync.sync_now()
    assert (place.served(), place.served("apple")) == (["10"], ["3"])
    assert place.states() == {"1": "available", "9": "available", "10": "serving"}
    assert place.loads("loaded") == 2


def test_several_of_the_newest_can_be_served(tmp_path):
    place = Place(tmp_path, newest=2)
    for version in ("1", "2", "3"):
        place.add("pear", version)
    place.sync.sync_now()
    assert place.served() == ["2", "3"]


async def test_changes_are_seen_without_being_asked_for(place):
    watching = asyncio.create_task(place.sync.watch(interval=60))
    await asyncio.sleep(0.3)
    old = place.registry.get("pear")
    place.add("pear", "2")
    await until(lambda: place.served() == ["2"])
    await until(old.engine.closed.is_set)
    set_alias(place.path, "pear", "stable", {"1": 1})
    await until(lambda: "stable" in place.registry.aliases("pear"))
    assert place.served() == ["1", "2"]
    watching.cancel()


async def test_changes_that_the_system_does_not_tell_of_are_seen_too(place, monkeypatch):
    monkeypatch.setattr("condconv_serve.serving.store_sync._DEBOUNCE_MS", 1)
    looked = threading.Event()

    async def silent(*_, **options):
        assert options["rust_timeout"] == 50
        while True:
            await asyncio.sleep(options["rust_timeout"] / 1000)
            looked.set()
            yield set()

    monkeypatch.setattr("condconv_serve.serving.store_sync.awatch", silent)
    watching = asyncio.create_task(place.sync.watch(interval=0.05))
    place.add("pear", "2")
    await until(lambda: place.served() == ["2"])
    assert looked.is_set()
    watching.cancel()


async def test_a_system_that_tells_of_nothing_any_more(place, monkeypatch, caplog):
    async def broken(*_, **__):
        raise OSError("inotify limit reached")
        yield set()

    monkeypatch.setattr("condconv_serve.serving.store_sync.awatch", broken)
    watching = asyncio.create_task(place.sync.watch(interval=0.05))
    for version in ("2", "3"):
        place.add("pear", version)
        await until(lambda version=version: place.served() == [version])
    watching.cancel()
    assert [record.levelname for record in caplog.records if "nothing tells of changes" in record.message] == [
        "WARNING"
    ]


def test_a_model_that_can_not_be_read_leaves_the_others_alone(place, monkeypatch, caplog):
    versions = Catalog.versions

    def unreadable(self, model):
        if model == "pear":
            raise PermissionError(13, "Permission denied")
        return versions(self, model)

    monkeypatch.setattr(Catalog, "versions", unreadable)
    place.add("apple", "1")
    place.sync.sync_now()
    assert place.served() == ["1"], "as before"
    assert set(place.registry.models()) == {"apple", "pear"}
    assert "Permission denied" in caplog.text


def test_a_broken_version_leaves_the_old_one_serving(place):
    path = place.add("pear", "2")
    with (path / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    place.sync.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "serving", "2": "failed"}
    assert "pear/2: weights.safetensors has" in place.reason("2")
    assert place.loads("failed") == 1
    place.sync.sync_now()
    assert place.loads("failed") == 1  # nothing has changed, so it isn't tried again
    shutil.rmtree(path)
    place.add("pear", "2")
    place.sync.sync_now()
    assert place.states() == {"1": "available", "2": "serving"}
    assert place.reason("2") is None


def test_an_unexpected_failure_is_not_told_in_full(place):
    place.broken.add("2")
    place.add("pear", "2")
    place.sync.sync_now()
    assert place.states()["2"] == "failed"
    assert place.reason("2") == "It could not be loaded; the log says why."


def test_a_served_version_that_changes_is_loaded_anew(place):
    before = place.registry.get("pear")
    rewrite(place.path / "pear" / "1", licence="Apache-2.0")
    place.sync.sync_now()
    after = place.registry.get("pear")
    assert after is not before
    assert before.engine.closed.wait(5)
    rewrite(place.path / "pear" / "1", licence=7)
    place.sync.sync_now()
    assert place.registry.get("pear") is after
    assert place.states() == {"1": "serving"}
    assert "licence" in place.reason("1")


def test_a_version_that_vanishes_is_retired_unless_it_is_the_last(place):
    place.add("pear", "2")
    place.sync.sync_now()
    shutil.rmtree(place.path / "pear" / "2")
    place.sync.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "serving"}
    shutil.rmtree(place.path / "pear")
    place.sync.sync_now()
    assert place.served() == ["1"]
    shutil.rmtree(place.path)
    place.sync.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "serving"}


async def test_load_and_unload_on_request(place):
    place.add("pear", "2")
    place.sync.sync_now()
    assert (await place.sync.load("pear", "1")).state == "serving"
    place.add("pear", "3")
    await place.sync.sync()
    assert place.served() == ["1", "3"]
    status = await place.sync.unload("pear", "3")
    assert status.state in ("retiring", "available")
    assert place.served() == ["1"]
    await place.sync.sync()
    assert place.served() == ["1", "2"]  # 3 stays away; the newest of the others is served in its place
    assert (await place.sync.load("pear", "3")).state == "serving"


async def test_what_cannot_be_loaded_on_request(place):
    with pytest.raises(VersionNotFound, match=r"Model pear has no version '7'; there are: 1\."):
        await place.sync.load("pear", "7")
    with pytest.raises(ModelNotFound):
        await place.sync.load("../pear", "1")
    rewrite(place.add("pear", "2"), schema_version=9)
    with pytest.raises(BundleError, match="has schema version 9, newer"):
        await place.sync.load("pear", "2")
    with pytest.raises(BundleError, match="has schema version 9, newer"):
        await place.sync.load("pear", "2")
    assert place.loads("failed") == 2
    assert place.served() == ["1"]


async def test_what_is_needed_cannot_be_unloaded(place):
    with pytest.raises(VersionInUse, match="all that is served of pear, the default model"):
        await place.sync.unload("pear", "1")
    place.add("pear", "2")
    await place.sync.set_alias("pear", "stable", {"1": 1})
    with pytest.raises(VersionInUse, match=r"Version 1 of pear is what stable points at\."):
        await place.sync.unload("pear", "1")
    with pytest.raises(VersionNotFound):
        await place.sync.unload("pear", "3")
    place.add("apple", "1")
    await place.sync.sync()
    await place.sync.unload("apple", "1")
    assert place.served("apple") == []


async def test_an_alias_brings_its_versions_along(place):
    place.add("pear", "2")
    place.add("pear", "3")
    await place.sync.sync()
    assert place.served() == ["3"]
    alias = await place.sync.set_alias("pear", "stable", {"1": 90, "2": 10})
    assert alias.versions == {"1": 90, "2": 10}
    assert place.served() == ["1", "2", "3"]
    await place.sync.set_alias("pear", "stable", {"2": 1})
    assert place.served() == ["2", "3"]
    assert (await place.sync.roll_back("pear", "stable")).versions == {"1": 90, "2": 10}
    assert place.served() == ["1", "2", "3"]
    await place.sync.delete_alias("pear", "stable")
    assert (place.served(), place.registry.aliases("pear")) == (["3"], {})


async def test_an_alias_that_cannot_be_stays_as_it_was(place):
    await place.sync.set_alias("pear", "stable", {"1": 1})
    with pytest.raises(InvalidParameter):
        await place.sync.set_alias("pear", "Stable", {"1": 1})
    with pytest.raises(VersionNotFound):
        await place.sync.set_alias("pear", "stable", {"2": 1})
    rewrite(place.add("pear", "2"), schema_version=9)
    with pytest.raises(BundleError):
        await place.sync.set_alias("pear", "stable", {"1": 1, "2": 1})
    with pytest.raises(InvalidParameter, match="never pointed anywhere else"):
        await place.sync.roll_back("pear", "stable")
    with pytest.raises(AliasNotFound):
        await place.sync.delete_alias("pear", "canary")
    assert read_aliases(place.path, "pear") == place.registry.aliases("pear")
    assert place.registry.get("pear", "stable").version == "1"


def test_an_alias_changed_in_the_store_to_what_cannot_be_served(place):
    place.add("pear", "2")
    set_alias(place.path, "pear", "stable", {"1": 1})
    place.sync.sync_now()
    set_alias(place.path, "pear", "stable", {"7": 1})
    place.sync.sync_now()
    assert place.registry.get("pear", "stable").version == "1"
    (place.path / "pear" / "aliases.json").write_text("{")
    place.sync.sync_now()
    assert place.registry.get("pear", "stable").version == "1"


async def test_a_bundle_that_is_still_being_copied_is_left_alone(place, caplog):
    place.add("plum", "2")
    (place.path / "plum" / "2").rename(place.path / "copied")
    source = place.path / "copied"
    rewrite(source, name="pear")
    watching = asyncio.create_task(place.sync.watch(interval=60))
    await asyncio.sleep(0.3)
    target = place.path / "pear" / "2"
    target.mkdir()
    for name in ("manifest.json", "labels.json", "MODEL_CARD.md"):
        shutil.copy(source / name, target / name)
        await asyncio.sleep(0.3)
    data = (source / "weights.safetensors").read_bytes()
    with (target / "weights.safetensors").open("wb") as file:
        for start in range(0, len(data), len(data) // 8):
            file.write(data[start : start + len(data) // 8])
            file.flush()
            os.fsync(file.fileno())
            await asyncio.sleep(0.2)
    await until(lambda: place.served() == ["2"])
    assert place.loads("failed") is None, caplog.text
    watching.cancel()


def test_states_as_metrics(place):
    def shown(version):
        return [
            state
            for state in ("available", "loading", "serving", "retiring", "failed")
            if place.metrics.registry.get_sample_value(
                "condconv_model_version_state", {"model": "pear", "version": version, "state": state}
            )
        ]

    assert shown("1") == ["serving"]
    old = place.registry.get("pear")
    place.add("pear", "2")
    with place.registry.lease("pear"):
        place.sync.sync_now()
        assert (shown("1"), shown("2")) == (["retiring"], ["serving"])
    assert old.engine.closed.wait(5)
    shutil.rmtree(place.path / "pear" / "1")
    place.sync.sync_now()
    assert (shown("1"), shown("2")) == ([], ["serving"])


def test_what_a_start_needs(tmp_path):
    place = Place(tmp_path)
    rewrite(place.add("pear", "2"), schema_version=9)
    place.sync.sync_now()
    with pytest.raises(BundleError, match=r"pear/2: manifest\.json has schema version 9"):
        place.sync.demand("pear")
    with pytest.raises(ModelNotFound):
        place.sync.demand("apple")
    place.add("pear", "1")
    place.sync.sync_now()
    place.sync.demand("pear")
    assert place.served() == ["1"]


async def test_what_is_still_being_written_is_not_loaded_on_request(place):
    path = place.add("pear", "2")
    place.sync._settle_seconds = 0.05
    ended = threading.Event()

    def write():
        while not ended.is_set():
            (path / "MODEL_CARD.md").write_text(str(threading.get_ident()))
            (path / "MODEL_CARD.md").touch()
            ended.wait(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(BundleError, match="pear/2: its files are still changing"):
            await place.sync.load("pear", "2")
    finally:
        ended.set()
        writer.join()
    assert place.served() == ["1"]
