"""Copies that take their time, and files that break behind a version that serves."""

import os
import shutil

import pytest

from condconv_serve.serving import stored_files
from condconv_serve.store import open_bundle
from tests.unit.serving.models import Place
from tests.unit.store.samples import rewrite


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.add("pear", "1")
    place.follower.sync_now()
    yield place
    place.follower.close()


def state(place, version="1"):
    place.follower.sync_now()
    shown = [
        sample.labels["state"]
        for family in place.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "condconv_model_version_state"
        and sample.value
        and (sample.labels["model"], sample.labels["version"]) == ("pear", version)
    ]
    assert shown == [place.states()[version]], "the metric says the same"
    return shown[0]


def cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def cut_weights(path):
    cut(path / "weights.safetensors")


def lose_labels(path):
    (path / "labels.json").unlink()


def cut_manifest(path):
    cut(path / "manifest.json")


def empty_manifest(path):
    (path / "manifest.json").write_bytes(b"")


def damage_weights(path):
    """As many bytes as before, but others."""
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\xff" * 4)


def lengthen_labels(path):
    with (path / "labels.json").open("ab") as file:
        file.write(b" ")


def become_another_version(path):
    rewrite(path, version="9")


def become_newer(path):
    rewrite(path, schema_version=9)


def link_labels(path):
    (path / "labels.json").rename(path.parent.parent / "labels.json")
    (path / "labels.json").symlink_to("../../labels.json")


def lose_manifest(path):
    (path / "manifest.json").unlink()


def lose_everything(path):
    shutil.rmtree(path)


def go_elsewhere(path):
    path.rename(path.with_name(f"old-{path.name}"))


COPYING = (cut_weights, lose_labels, cut_manifest, empty_manifest)
BROKEN = (damage_weights, lengthen_labels, become_another_version, become_newer, link_labels)


@pytest.mark.parametrize("half", COPYING)
def test_half_a_copy_is_incomplete_and_fails_only_once_it_has_stalled(half, place, caplog):
    path = place.add("pear", "2")
    whole = path.rename(place.path / "whole")
    shutil.copytree(whole, path)
    half(path)
    assert state(place, "2") == "incomplete"
    place.now += 119
    assert state(place, "2") == "incomplete"
    assert place.served() == ["1"]
    assert place.loads("failed") is None
    assert "ERROR" not in caplog.text
    assert place.registry.unserved()["pear"].versions["2"].retry_after == 5
    place.now += 1
    assert state(place, "2") == "failed"
    assert place.reason("2").endswith("Nothing has changed for 120 s.")
    assert place.loads("failed") == 1
    assert state(place, "2") == "failed"
    assert place.loads("failed") == 1, "told once"
    assert place.registry.unserved()["pear"].versions["2"].retry_after == 30
    shutil.copytree(whole, path, dirs_exist_ok=True)
    assert state(place, "2") == "serving"


def test_a_copy_that_goes_on_never_fails(place):
    path = place.add("pear", "2")
    file = path / "weights.safetensors"
    whole = file.read_bytes()
    for size in range(20, len(whole), len(whole) // 6):
        file.write_bytes(whole[:size])
        assert state(place, "2") == "incomplete"
        place.now += 100
    file.write_bytes(whole)
    assert state(place, "2") == "serving"
    assert place.loads("failed") is None


@pytest.mark.parametrize("damage", BROKEN)
def test_what_no_copy_could_become_has_failed_at_once(damage, place):
    damage(place.add("pear", "2"))
    assert state(place, "2") == "failed"


@pytest.mark.parametrize("damage", [*BROKEN, lose_everything, go_elsewhere])
def test_files_that_break_behind_a_version_make_it_stale(damage, place, caplog):
    before = place.registry.get("pear")
    path = place.path / "pear" / "1"
    shutil.copytree(path, place.path / "whole", copy_function=shutil.copy2)
    damage(path)
    assert state(place) == "stale"
    assert place.reason("1").startswith("pear/1")
    assert state(place) == "stale"
    assert place.registry.get("pear") is before
    assert caplog.text.count("serves, but not after a restart") == 1, "told once"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(place.path / "whole", path, copy_function=shutil.copy2)
    assert state(place) == "serving"
    assert place.reason("1") is None


@pytest.mark.parametrize("damage", [*COPYING, lose_manifest])
def test_a_copy_over_a_version_that_serves_may_take_its_time(damage, place):
    path = place.path / "pear" / "1"
    damage(path)
    assert state(place) == "serving"
    assert place.reason("1").startswith("pear/1: ")
    place.now += 120
    assert state(place) == "stale"
    assert place.served() == ["1"]


def test_a_version_whose_manifest_is_gone_is_damaged_rather_than_retired(place):
    place.add("pear", "2")
    assert state(place, "2") == "serving"
    lose_manifest(place.path / "pear" / "2")
    assert state(place, "2") == "serving"
    place.now += 120
    assert state(place, "2") == "stale"
    assert place.served() == ["2"]


def test_a_version_that_is_retired_is_not_stale(place):
    place.add("pear", "2")
    place.follower.sync_now()
    lose_everything(place.path / "pear" / "2")
    assert state(place) == "serving"
    assert place.states() == {"1": "serving"}


def test_a_store_that_can_not_be_read_makes_everything_stale(place):
    place.add("plum", "1")
    place.follower.sync_now()
    away = place.path.rename(place.path.with_name("away"))
    assert state(place) == "stale"
    assert place.states("plum") == {"1": "stale"}
    assert "can't be read" in place.reason("1")
    away.rename(place.path)
    assert state(place) == "serving"
    assert place.states("plum") == {"1": "serving"}


def test_files_that_may_not_be_opened_any_more(place, monkeypatch):
    """Nothing else tells of lost permissions: size and time of the last change stay as they were."""
    opened = os.open

    def forbidding(path, *arguments, **more):
        if str(path).endswith("pear/1/labels.json"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(stored_files.os, "open", forbidding)
    assert state(place) == "stale"
    assert place.reason("1") == "pear/1: labels.json is missing or can't be read."
    monkeypatch.undo()
    assert state(place) == "serving"


def test_content_that_changes_in_secret(place):
    """The size and the time of the last change are as before; only the time of any change isn't."""
    path = place.path / "pear" / "1"
    file = path / "weights.safetensors"
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        handle.write(b"\xff" * 4)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert state(place) == "stale"
    assert "SHA-256" in place.reason("1")


def test_files_are_read_only_if_something_has_changed(place, monkeypatch):
    read = []
    monkeypatch.setattr(stored_files, "open_bundle", lambda path: read.append(path) or open_bundle(path))
    for _ in range(3):
        assert state(place) == "serving"
    assert read == []
    (place.path / "pear" / "1" / "labels.json").chmod(0o600)
    for _ in range(3):
        assert state(place) == "serving"
    assert len(read) == 1


def test_a_pipe_in_place_of_a_file_holds_nobody_up(place):
    path = place.path / "pear" / "1" / "labels.json"
    path.unlink()
    os.mkfifo(path)
    os.mkfifo(path.with_name("another"))
    assert state(place) == "stale"
