import asyncio
import os
import shutil
import threading
from typing import get_args

import pytest

from condconv_serve.errors import BundleError, ModelNotFound
from condconv_serve.serving.versions import State
from condconv_serve.store import Catalog
from condconv_serve.store.aliases import set_alias
from tests.unit.serving.models import Place, wait_for_releases
from tests.unit.store.samples import rewrite


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.follower.sync_now()
    yield place
    place.follower.close()


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what changes is on other threads
            await asyncio.sleep(0.01)


def test_the_newest_version_of_each_model_is_served(place):
    place.add("apple", "3")
    place.add("pear", "10")
    place.add("pear", "9")
    place.follower.sync_now()
    assert (place.served(), place.served("apple")) == (["10"], ["3"])
    assert place.states() == {"1": "available", "9": "available", "10": "serving"}
    assert place.loads("loaded") == 2


def test_several_of_the_newest_can_be_served(tmp_path):
    place = Place(tmp_path, newest=2)
    for version in ("1", "2", "3"):
        place.add("pear", version)
    place.follower.sync_now()
    assert place.served() == ["2", "3"]


def test_a_model_that_can_not_be_read_leaves_the_others_alone(place, monkeypatch, caplog):
    versions = Catalog.versions

    def unreadable(self, model):
        if model == "pear":
            raise PermissionError(13, "Permission denied")
        return versions(self, model)

    monkeypatch.setattr(Catalog, "versions", unreadable)
    place.add("apple", "1")
    place.follower.sync_now()
    assert place.served() == ["1"], "as before"
    assert set(place.registry.models()) == {"apple", "pear"}
    assert "Permission denied" in caplog.text
    assert place.states() == {"1": "stale"}
    assert place.reason("1") == "pear can't be read in the model store."
    monkeypatch.undo()
    place.follower.sync_now()
    assert place.states() == {"1": "serving"}


def test_a_broken_version_leaves_the_old_one_serving(place):
    path = place.add("pear", "2")
    with (path / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    place.follower.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "serving", "2": "failed"}
    assert "pear/2: weights.safetensors has" in place.reason("2")
    assert place.loads("failed") == 1
    place.follower.sync_now()
    assert place.loads("failed") == 1  # nothing has changed, so it isn't tried again
    shutil.rmtree(path)
    place.add("pear", "2")
    place.follower.sync_now()
    assert place.states() == {"1": "available", "2": "serving"}
    assert place.reason("2") is None


def test_an_unexpected_failure_is_not_told_in_full(place):
    place.broken.add("2")
    place.add("pear", "2")
    place.follower.sync_now()
    assert place.states()["2"] == "failed"
    assert place.reason("2") == "It could not be loaded; the log says why."


def test_a_served_version_that_changes_is_loaded_anew(place):
    before = place.registry.get("pear")
    rewrite(place.path / "pear" / "1", licence="Apache-2.0")
    place.follower.sync_now()
    after = place.registry.get("pear")
    assert after is not before
    assert before.engine.closed.wait(60)
    rewrite(place.path / "pear" / "1", licence=7)
    place.follower.sync_now()
    assert place.registry.get("pear") is after
    assert place.states() == {"1": "stale"}
    assert "licence" in place.reason("1")


def test_a_version_that_vanishes_is_retired_unless_it_is_the_last(place):
    place.add("pear", "2")
    place.follower.sync_now()
    shutil.rmtree(place.path / "pear" / "2")
    place.follower.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "serving"}
    shutil.rmtree(place.path / "pear")
    place.follower.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "stale"}
    shutil.rmtree(place.path)
    place.follower.sync_now()
    assert place.served() == ["1"]
    assert place.states() == {"1": "stale"}


def test_an_alias_changed_in_the_store_to_what_cannot_be_served(place):
    place.add("pear", "2")
    set_alias(place.path, "pear", "stable", {"1": 1})
    place.follower.sync_now()
    set_alias(place.path, "pear", "stable", {"7": 1})
    place.follower.sync_now()
    assert place.registry.get("pear", "stable").version == "1"
    (place.path / "pear" / "aliases.json").write_text("{")
    place.follower.sync_now()
    assert place.registry.get("pear", "stable").version == "1"


def test_states_as_metrics(place):
    def shown(version):
        return [
            state
            for state in get_args(State)
            if place.metrics.registry.get_sample_value(
                "condconv_model_version_state", {"model": "pear", "version": version, "state": state}
            )
        ]

    assert shown("1") == ["serving"]
    old = place.registry.get("pear")
    place.add("pear", "2")
    with place.registry.lease("pear"):
        place.follower.sync_now()
        assert (shown("1"), shown("2")) == (["retiring"], ["serving"])
    wait_for_releases()
    assert old.engine.closed.is_set()
    shutil.rmtree(place.path / "pear" / "1")
    place.follower.sync_now()
    assert (shown("1"), shown("2")) == ([], ["serving"])


def test_what_a_start_needs(tmp_path):
    place = Place(tmp_path)
    rewrite(place.add("pear", "2"), schema_version=9)
    place.follower.sync_now()
    with pytest.raises(BundleError, match=r"pear/2: manifest\.json has schema version 9"):
        place.ledger.demand("pear")
    with pytest.raises(ModelNotFound):
        place.ledger.demand("apple")
    place.add("pear", "1")
    place.follower.sync_now()
    place.ledger.demand("pear")
    assert place.served() == ["1"]


async def test_changes_are_seen_without_being_asked_for(place):
    watching = asyncio.create_task(place.follower.watch(interval=0.05, debounce=0.001))
    old = place.registry.get("pear")
    place.add("pear", "2")
    await until(lambda: place.served() == ["2"])
    await until(old.engine.closed.is_set)
    set_alias(place.path, "pear", "stable", {"1": 1})
    await until(lambda: "stable" in place.registry.aliases("pear"))
    assert place.served() == ["1", "2"]
    watching.cancel()


async def test_watching_goes_on_whatever_happens(place, monkeypatch, caplog):
    place.add("pear", "2")
    models, failures = Catalog.models, [RuntimeError("a defect")]

    def fail_once(self):
        if failures:
            raise failures.pop()
        return models(self)

    monkeypatch.setattr(Catalog, "models", fail_once)
    watching = asyncio.create_task(place.follower.watch(interval=0.01, debounce=0.001))
    await until(lambda: place.served() == ["2"])
    assert "the model store could not be followed" in caplog.text
    watching.cancel()


def test_nothing_is_waited_for_at_the_start_but_later_all_that_is_loaded_must_settle(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.follower.sync_now()
    assert (place.served(), place.pauses) == (["1"], [])
    place.add("pear", "2")
    place.add("plum", "1")
    place.follower.sync_now()
    assert (place.served(), place.served("plum"), place.pauses) == (["2"], ["1"], [0.5, 0.5])
    place.follower.sync_now()
    assert len(place.pauses) == 2, "nothing has changed"


def test_a_bundle_that_is_still_being_copied_is_left_alone(place, caplog):
    source = place.add("plum", "2").rename(place.path / "copied")
    rewrite(source, name="pear")
    target = place.path / "pear" / "2"
    target.mkdir()
    weights = (source / "weights.safetensors").read_bytes()
    third = len(weights) // 3

    def copy():
        for name in ("manifest.json", "labels.json", "MODEL_CARD.md"):
            yield shutil.copy(source / name, target / name)
        for start in range(0, len(weights), third):
            with (target / "weights.safetensors").open("ab") as file:
                yield file.write(weights[start : start + third])

    step = copy()
    next(step)
    place.while_waiting = lambda: next(step, None)
    rounds = 0
    while place.served() != ["2"]:
        assert place.served() == ["1"]
        place.follower.sync_now()
        rounds += 1
    assert rounds >= 6, "one for each step of the copy"
    assert place.loads("failed") is None, caplog.text


def test_a_failed_version_of_an_old_number_gets_another_chance_too(place):
    rewrite(place.add("pear", "2"), schema_version=9)
    place.follower.sync_now()
    place.add("pear", "3")
    place.follower.sync_now()
    assert place.states() == {"1": "available", "2": "failed", "3": "serving"}
    os.utime(place.path / "pear" / "2" / "manifest.json")
    place.follower.sync_now()
    assert place.states() == {"1": "available", "2": "available", "3": "serving"}
    assert place.loads("failed") == 1, "it isn't wanted, so it isn't tried"


async def test_what_waits_for_the_loader_is_dropped_at_the_end(place):
    """A load that is under way goes on, and is told of; nothing is begun after it."""
    begun, may_end = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert may_end.wait(60)

    place.while_waiting = wait
    place.add("pear", "2")
    place.add("plum", "1")
    under_way = asyncio.create_task(place.follower.sync())
    await asyncio.to_thread(begun.wait, 60)
    waiting = asyncio.create_task(place.follower.sync())
    await asyncio.sleep(0)
    assert place.follower.loading
    place.follower.close()
    assert place.follower.loading
    may_end.set()
    await under_way
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (place.served(), place.served("plum")) == (["1"], [])
    assert not place.follower.loading
