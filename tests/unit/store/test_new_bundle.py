import errno
import os
import stat

import numpy as np
import pytest

from condconv_serve.domain import Label
from condconv_serve.errors import BundleError
from condconv_serve.store import open_bundle, read_labels, read_weights, write_bundle
from condconv_serve.store.new_bundle import write_next_bundle
from tests.unit.store.samples import LABELS, new_bundle, read_all

FILES = ["MODEL_CARD.md", "labels.json", "manifest.json", "weights.safetensors"]


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path, new_bundle())


def everything_in(directory):
    """All files but the lock's, which filelock leaves there or not."""
    return sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.name != ".default.lock")


def test_round_trip(tmp_path):
    given = new_bundle()
    path = write_bundle(tmp_path, given)
    assert path == tmp_path / "small" / "1"
    assert sorted(file.name for file in path.iterdir()) == FILES
    opened = open_bundle(path)
    manifest = opened.manifest
    assert (manifest.name, manifest.version, manifest.num_classes) == ("small", "1", 3)
    assert manifest.architecture.name == "efficientnet-lite0-condconv-4e"
    assert manifest.architecture.overrides == {"num_classes": 3}
    assert manifest.preprocessing == given.preprocessing
    assert manifest.provenance == given.provenance
    assert manifest.accuracy == given.accuracy
    assert manifest.licence == "MIT"
    assert opened.model_card == given.model_card
    assert read_labels(opened) == LABELS
    weights = read_weights(opened)
    assert weights.keys() == given.weights.keys()
    for name, value in weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, given.weights[name])


def test_all_files_can_be_read_by_all(path):
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}
    for directory in (path, path.parent):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o500 == 0o500
        assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode)


def test_weights_in_any_memory_layout_arrive(tmp_path):
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    path = write_bundle(tmp_path, new_bundle(weights={"turned": value.T, "part": value[::2, 1:]}))
    weights = read_weights(open_bundle(path))
    np.testing.assert_array_equal(weights["turned"], value.T)
    np.testing.assert_array_equal(weights["part"], value[::2, 1:])


def test_an_existing_version_is_kept(tmp_path, path):
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(BundleError, match=r"^small/1 exists already; choose another version\.$"):
        write_bundle(tmp_path, new_bundle(licence="other"))
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert write_bundle(tmp_path, new_bundle(version="2")) == tmp_path / "small" / "2"
    assert everything_in(tmp_path) == sorted(
        [
            "default.json",
            "small",
            "small/1",
            "small/2",
            *(f"small/{version}/{name}" for version in "12" for name in FILES),
        ]
    )


INVALID = {
    "name with parents": ({"name": "../small"}, "../small/1 can't be written: name: "),
    "name with a folder": ({"name": "a/b"}, "a/b/1 can't be written: name: "),
    "hidden name": ({"name": ".small"}, ".small/1 can't be written: name: "),
    "version": ({"version": "v1"}, "small/v1 can't be written: version: "),
    "version with parents": ({"version": "../../1"}, "small/../../1 can't be written: version: "),
    "no labels": ({"labels": ()}, "small/1 can't be written: num_classes: "),
    "architecture without name": ({"architecture": {"depth": 1}}, "small/1 can't be written: name: "),
    "labels in disorder": ({"labels": (Label(1, "b"), Label(0, "a"))}, "small/1: labels.json must name the classes"),
}


@pytest.mark.parametrize(("changes", "says"), INVALID.values(), ids=INVALID)
def test_nothing_invalid_is_written(changes, says, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(BundleError) as caught:
        write_bundle(store, new_bundle(**changes))
    assert str(caught.value).startswith(says)
    assert everything_in(tmp_path) == ["store"]


def test_an_absolute_name_is_refused(tmp_path):
    outside = tmp_path / "outside"
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "store", new_bundle(name=str(outside)))
    assert everything_in(tmp_path) == []


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "breaks",
    [
        "scratch.tempfile.mkdtemp",
        "scratch.os.replace",
        "new_bundle.save_tensors",
        "new_bundle.os.fsync",
        "new_bundle.os.rename",
        "new_bundle.Path.mkdir",
        "new_bundle.Path.write_text",
    ],
)
@pytest.mark.parametrize("existing", [[], ["1"]], ids=["new model", "new version"])
def test_a_full_disk_leaves_nothing_behind(breaks, existing, tmp_path, monkeypatch):
    for version in existing:
        write_bundle(tmp_path, new_bundle(version=version))
    before = everything_in(tmp_path)
    monkeypatch.setattr(f"condconv_serve.store.{breaks}", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path, new_bundle(version="2"))
    monkeypatch.undo()
    assert everything_in(tmp_path) == before
    for version in existing:
        read_all(tmp_path / "small" / version)
    write_bundle(tmp_path, new_bundle(version="2"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def interrupt(*_):
        raise error

    monkeypatch.setattr("condconv_serve.store.new_bundle.os.fsync", interrupt)
    with pytest.raises(error):
        write_bundle(tmp_path / "new" / "store", new_bundle())
    assert everything_in(tmp_path) == []


def test_a_model_that_leads_to_another_file_system(tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("condconv_serve.store.new_bundle.os.rename", other_disk)
    with pytest.raises(BundleError, match="small leads to another file system than the model store's"):
        write_bundle(tmp_path, new_bundle())
    assert everything_in(tmp_path) == []


def test_what_others_put_beside_it_stays(tmp_path, monkeypatch):
    def somebody_else_is_faster(*_):
        (tmp_path / "small" / "7").mkdir()
        disk_full()

    monkeypatch.setattr("condconv_serve.store.new_bundle.os.rename", somebody_else_is_faster)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path, new_bundle())
    assert everything_in(tmp_path) == ["small", "small/7"]


def test_somebody_else_writes_the_same_version_meanwhile(tmp_path, monkeypatch):
    rename = os.rename

    def somebody_else_is_faster(source, target):
        target.mkdir()
        (target / "manifest.json").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr("condconv_serve.store.new_bundle.os.rename", somebody_else_is_faster)
    with pytest.raises(BundleError, match=r"^small/1 exists already; choose another version\.$"):
        write_bundle(tmp_path, new_bundle())
    assert everything_in(tmp_path) == ["small", "small/1", "small/1/manifest.json"]


def test_somebody_else_takes_the_next_version_meanwhile(tmp_path, monkeypatch):
    rename = os.rename

    def somebody_else_is_faster(source, target):
        if target.name in "12":
            target.mkdir()
            (target / "manifest.json").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr("condconv_serve.store.new_bundle.os.rename", somebody_else_is_faster)
    assert write_next_bundle(tmp_path, new_bundle()) == tmp_path / "small" / "3"
    assert open_bundle(tmp_path / "small" / "3").manifest.version == "3"


@pytest.mark.parametrize(("name", "says"), [("../small", "can't be written: name: "), ("", "can't be written: name: ")])
def test_the_next_version_of_what_is_no_name(name, says, tmp_path):
    with pytest.raises(BundleError, match=says):
        write_next_bundle(tmp_path / "store", new_bundle(name=name))
