import os

import pytest

from condconv_serve.errors import (
    AliasNotFound,
    BundleError,
    InvalidParameter,
    ModelNotFound,
    VersionInUse,
    VersionNotFound,
)
from condconv_serve.store.aliases import read_aliases
from tests.unit.serving.models import Place
from tests.unit.store.samples import rewrite


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.follower.sync_now()
    yield place
    place.follower.close()


async def test_load_and_unload_on_request(place):
    place.add("pear", "2")
    place.follower.sync_now()
    assert (await place.admin.load("pear", "1")).state == "serving"
    place.add("pear", "3")
    await place.follower.sync()
    assert place.served() == ["1", "3"]
    status = await place.admin.unload("pear", "3")
    assert status.state in ("retiring", "available")
    assert place.served() == ["1"]
    await place.follower.sync()
    assert place.served() == ["1", "2"]  # 3 stays away; the newest of the others is served in its place
    assert (await place.admin.load("pear", "3")).state == "serving"


async def test_what_cannot_be_loaded_on_request(place):
    with pytest.raises(VersionNotFound, match=r"Model pear has no version '7'; there are: 1\."):
        await place.admin.load("pear", "7")
    with pytest.raises(ModelNotFound):
        await place.admin.load("../pear", "1")
    rewrite(place.add("pear", "2"), schema_version=9)
    with pytest.raises(BundleError, match="has schema version 9, newer"):
        await place.admin.load("pear", "2")
    with pytest.raises(BundleError, match="has schema version 9, newer"):
        await place.admin.load("pear", "2")
    assert place.loads("failed") == 2
    assert place.served() == ["1"]


async def test_what_is_needed_cannot_be_unloaded(place):
    with pytest.raises(VersionInUse, match="all that is served of pear, the default model"):
        await place.admin.unload("pear", "1")
    place.add("pear", "2")
    await place.admin.set_alias("pear", "stable", {"1": 1})
    with pytest.raises(VersionInUse, match=r"Version 1 of pear is what stable points at\."):
        await place.admin.unload("pear", "1")
    with pytest.raises(VersionNotFound):
        await place.admin.unload("pear", "3")
    place.add("apple", "1")
    await place.follower.sync()
    await place.admin.unload("apple", "1")
    assert place.served("apple") == []


async def test_an_alias_brings_what_it_mirrors_to_along_but_never_depends_on_it(place, tmp_path):
    place.add("pear", "2")
    await place.follower.sync()
    assert place.served() == ["2"]
    await place.admin.set_alias("pear", "default", {"2": 1}, mirror={"1": 10})
    assert place.served() == ["1", "2"]
    await place.admin.unload("pear", "1")
    await place.follower.sync()
    assert place.served() == ["2"]
    assert place.registry.aliases("pear")["default"].mirror == {"1": 10}
    rewrite(tmp_path / "pear" / "1", schema_version=9)
    await place.follower.sync()
    assert place.served() == ["2"]
    assert (place.registry.trouble("pear"), place.registry.get("pear").version) == (None, "2")
    with pytest.raises(BundleError, match="has schema version 9, newer"):
        await place.admin.set_alias("pear", "default", {"2": 1}, mirror={"1": 20})
    with pytest.raises(VersionNotFound):
        await place.admin.set_alias("pear", "default", {"2": 1}, mirror={"7": 20})
    assert read_aliases(tmp_path, "pear")["default"].mirror == {"1": 10}


async def test_an_alias_brings_its_versions_along(place):
    place.add("pear", "2")
    place.add("pear", "3")
    await place.follower.sync()
    assert place.served() == ["3"]
    alias = await place.admin.set_alias("pear", "stable", {"1": 90, "2": 10})
    assert alias.versions == {"1": 90, "2": 10}
    assert place.served() == ["1", "2", "3"]
    await place.admin.set_alias("pear", "stable", {"2": 1})
    assert place.served() == ["2", "3"]
    assert (await place.admin.roll_back("pear", "stable")).versions == {"1": 90, "2": 10}
    assert place.served() == ["1", "2", "3"]
    await place.admin.delete_alias("pear", "stable")
    assert (place.served(), place.registry.aliases("pear")) == (["3"], {})


async def test_an_alias_that_cannot_be_stays_as_it_was(place):
    await place.admin.set_alias("pear", "stable", {"1": 1})
    with pytest.raises(InvalidParameter):
        await place.admin.set_alias("pear", "Stable", {"1": 1})
    with pytest.raises(VersionNotFound):
        await place.admin.set_alias("pear", "stable", {"2": 1})
    rewrite(place.add("pear", "2"), schema_version=9)
    with pytest.raises(BundleError):
        await place.admin.set_alias("pear", "stable", {"1": 1, "2": 1})
    with pytest.raises(InvalidParameter, match="never pointed anywhere else"):
        await place.admin.roll_back("pear", "stable")
    with pytest.raises(AliasNotFound):
        await place.admin.delete_alias("pear", "canary")
    assert read_aliases(place.path, "pear") == place.registry.aliases("pear")
    assert place.registry.get("pear", "stable").version == "1"


async def test_what_was_unloaded_comes_back_when_its_files_change(place):
    manifest = place.add("plum", "1") / "manifest.json"
    await place.follower.sync()
    assert place.served("plum") == ["1"]
    await place.admin.unload("plum", "1")
    await place.follower.sync()
    assert place.served("plum") == []
    os.utime(manifest)
    await place.follower.sync()
    assert place.served("plum") == ["1"]


async def test_what_was_never_loaded_can_be_unloaded_and_comes_back_too(place):
    place.add("pear", "3")
    await place.follower.sync()
    manifest = place.add("pear", "4") / "manifest.json"
    assert (await place.admin.unload("pear", "4")).state == "available"
    await place.follower.sync()
    assert place.served() == ["3"]
    os.utime(manifest)
    await place.follower.sync()
    assert place.served() == ["4"]


async def test_what_is_still_being_written_is_not_loaded_on_request(place):
    card = place.add("pear", "2") / "MODEL_CARD.md"
    place.while_waiting = lambda: card.write_text(card.read_text() + "more")
    with pytest.raises(BundleError, match="pear/2: its files are still changing"):
        await place.admin.load("pear", "2")
    with pytest.raises(BundleError, match="pear/2: its files are still changing"):
        await place.admin.set_alias("pear", "stable", {"2": 1})
    assert place.served() == ["1"]
    assert place.registry.aliases("pear") == {}


async def test_status_is_that_of_every_version(place):
    place.add("plum", "1")
    await place.follower.sync()
    place.add("plum", "2")
    found = {name: [(s.version, s.state) for s in statuses] for name, statuses in place.admin.status().items()}
    assert found == {"pear": [("1", "serving")], "plum": [("1", "serving"), ("2", "available")]}
