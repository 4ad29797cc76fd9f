import errno
import json
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save

from condconv_serve.domain import Label
from condconv_serve.errors import BundleError
from condconv_serve.store import bundle as bundle_module
from condconv_serve.store import open_bundle, read_labels, read_weights, write_bundle
from condconv_serve.store.bundle import write_next_bundle
from tests.unit.store.samples import DEFAULT, LABELS, new_bundle, replace_file, rewrite

FILES = ["MODEL_CARD.md", "labels.json", "manifest.json", "weights.safetensors"]


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path, new_bundle())


def refusal(action, path):
    """The message of the refusal, which must not tell where the store lies."""
    with pytest.raises(BundleError) as caught:
        action(path)
    assert str(path.parents[1]) not in str(caught.value)
    return str(caught.value)


def read_all(path):
    opened = open_bundle(path)
    read_labels(opened)
    read_weights(opened)


def everything_in(directory):
    return sorted(str(file.relative_to(directory)) for file in directory.rglob("*"))


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


def flip_a_byte(path):
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-3] ^= 1
    (path / "weights.safetensors").write_bytes(content)


def link_labels(path):
    (path / "labels.json").rename(path / "elsewhere.json")
    (path / "labels.json").symlink_to("elsewhere.json")


def shorten_card(path):
    (path / "MODEL_CARD.md").write_text("# Sm")


def unlink(name):
    return lambda path: (path / name).unlink()


def manifest(text):
    return lambda path: (path / "manifest.json").write_text(text)


def without_labels(path):
    files = json.loads((path / "manifest.json").read_text())["files"]
    del files["labels.json"]
    rewrite(path, files=files)


def change(**fields):
    return lambda path: rewrite(path, **fields)


def labels(document):
    return lambda path: replace_file(path, "labels.json", json.dumps(document, ensure_ascii=False).encode())


def weights(**arrays):
    return lambda path: replace_file(path, "weights.safetensors", save(arrays))


PREPROCESSING = {"transform": "pillow", "image_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}
THREE = [{"index": i, "label": f"class {i}"} for i in range(3)]
DAMAGE = {
    "no manifest": (unlink("manifest.json"), "manifest.json is missing or can't be read."),
    "no weights": (unlink("weights.safetensors"), "weights.safetensors is missing or no ordinary file."),
    "no labels": (unlink("labels.json"), "labels.json is missing or no ordinary file."),
    "no card": (unlink("MODEL_CARD.md"), "MODEL_CARD.md is missing or no ordinary file."),
    "symlink": (link_labels, "labels.json is missing or no ordinary file."),
    "flipped byte": (flip_a_byte, "weights.safetensors has SHA-256 "),
    "wrong size": (shorten_card, "MODEL_CARD.md has 4 bytes, but the manifest says 22."),
    "empty manifest": (manifest(""), "manifest.json is not valid JSON (Expecting value: line 1 column 1"),
    "half a manifest": (manifest('{"schema_version": 1,'), "manifest.json is not valid JSON ("),
    "nested deeply": (manifest("[" * 100_000), "manifest.json is not valid"),
    "huge number": (manifest('{"schema_version": 1' + "0" * 5000 + "}"), "manifest.json is not valid"),
    "a list": (manifest("[]"), "manifest.json is not valid: document: "),
    "no UTF-8": (lambda path: (path / "manifest.json").write_bytes(b'"\xff"'), "manifest.json is not UTF-8."),
    "unknown field": (change(quantization="int8"), "manifest.json is not valid: quantization: "),
    "future version": (
        change(schema_version=2),
        "manifest.json has schema version 2, newer than 1, the newest one known here.",
    ),
    "no version": (change(version=None), "manifest.json is not valid: version: Field required"),
    "zero classes": (change(num_classes=0), "manifest.json is not valid: num_classes: "),
    "another name": (change(name="other"), "the manifest says other/1, which is another place in the store."),
    "another version": (change(version="2"), "the manifest says small/2, which is another place in the store."),
    "bad name": (change(name="../small"), "manifest.json is not valid: name: "),
    "bad version": (change(version="01"), "manifest.json is not valid: version: "),
    "version with a line end": (change(version="1\n"), "manifest.json is not valid: version: "),
    "unlisted file": (without_labels, "the manifest doesn't list labels.json."),
    "file elsewhere": (
        change(files={"../../secret": {"size": 1, "sha256": "0" * 64}}),
        "manifest.json is not valid: files.../../secret.[key]: ",
    ),
    "zero deviation": (
        change(preprocessing=PREPROCESSING | {"std": [1, 0, 1]}),
        "manifest.json is not valid: preprocessing.std.1: ",
    ),
    "infinite mean": (
        change(preprocessing=PREPROCESSING | {"mean": [1, float("inf"), 1]}),
        "manifest.json is not valid: preprocessing.mean.1: ",
    ),
    "unknown transform": (
        change(preprocessing=PREPROCESSING | {"transform": "magic"}),
        "manifest.json is not valid: preprocessing.transform: ",
    ),
    "labels in disorder": (labels(THREE[::-1]), "labels.json must name the classes 0 to 2 in order."),
    "too few labels": (labels(THREE[:2]), "labels.json must name the classes 0 to 2 in order."),
    "too many labels": (
        labels([*THREE, {"index": 3, "label": "more"}]),
        "labels.json must name the classes 0 to 2 in order.",
    ),
    "a label twice": (labels([THREE[0], THREE[1], THREE[1]]), "labels.json must name the classes 0 to 2 in order."),
    "labels without names": (labels([{"index": 0}]), "labels.json is not valid: 0.label: "),
    "labels as a mapping": (labels({"0": "tench"}), "labels.json is not valid: document: "),
    "labels that are no text": (
        lambda path: replace_file(path, "labels.json", b"\xff\xfe"),
        "labels.json is not UTF-8.",
    ),
    "NaN": (weights(a=np.array([0, np.nan], np.float32)), "a holds numbers that are not finite."),
    "infinity": (weights(a=np.zeros(2, np.float32), b=np.float16([-np.inf])), "b holds numbers that are not finite."),
    "too big for float32": (weights(a=np.array([1e300])), "a holds numbers that are not finite."),
    "integers": (weights(a=np.arange(3)), "a is int64, but weights are floating-point numbers."),
    "no safetensors": (
        lambda path: replace_file(path, "weights.safetensors", b"PK\x03\x04 a pickle, perhaps"),
        "weights.safetensors can't be read (",
    ),
    "empty weights": (
        lambda path: replace_file(path, "weights.safetensors", b""),
        "weights.safetensors can't be read (",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(damage, says, path):
    damage(path)
    message = refusal(read_all, path)
    assert message.startswith(f"small/1: {says}")
    assert len(message) < 300


def test_many_wrong_fields_are_counted(path):
    rewrite(path, **{f"extra_{i}": i for i in range(9)})
    assert refusal(read_all, path).endswith("extra_4: Extra inputs are not permitted and 4 more.")


def test_what_vanishes_or_cannot_be_read_meanwhile(path, monkeypatch):
    opened = open_bundle(path)
    (path / "weights.safetensors").rename(path / "kept")
    message = refusal(lambda _: read_weights(opened), path)
    assert message == "small/1: weights.safetensors is missing or can't be read."
    (path / "kept").rename(path / "weights.safetensors")

    def refuse(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(bundle_module, "sha256_of", refuse)
    assert refusal(open_bundle, path).endswith(" can't be read.")


def test_a_manifest_of_absurd_size_is_not_read(path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_MAX_TEXT_BYTES", 100)
    assert refusal(read_all, path) == "small/1: manifest.json has more than 100 bytes."


def test_an_existing_version_is_kept(tmp_path, path):
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(BundleError, match=r"^small/1 exists already; choose another version\.$"):
        write_bundle(tmp_path, new_bundle(licence="other"))
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert write_bundle(tmp_path, new_bundle(version="2")) == tmp_path / "small" / "2"
    assert everything_in(tmp_path) == sorted(
        ["small", "small/1", "small/2", *(f"small/{version}/{name}" for version in "12" for name in FILES)]
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
        "bundle.save_file",
        "bundle.os.fsync",
        "bundle.os.rename",
        "bundle.Path.mkdir",
        "bundle.Path.write_text",
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

    monkeypatch.setattr("condconv_serve.store.bundle.os.fsync", interrupt)
    with pytest.raises(error):
        write_bundle(tmp_path / "new" / "store", new_bundle())
    assert everything_in(tmp_path) == []


def test_what_others_put_beside_it_stays(tmp_path, monkeypatch):
    def somebody_else_is_faster(*_):
        (tmp_path / "small" / "7").mkdir()
        disk_full()

    monkeypatch.setattr("condconv_serve.store.bundle.os.rename", somebody_else_is_faster)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path, new_bundle())
    assert everything_in(tmp_path) == ["small", "small/7"]


def test_somebody_else_writes_the_same_version_meanwhile(tmp_path, monkeypatch):
    rename = os.rename

    def somebody_else_is_faster(source, target):
        target.mkdir()
        (target / "manifest.json").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr("condconv_serve.store.bundle.os.rename", somebody_else_is_faster)
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

    monkeypatch.setattr("condconv_serve.store.bundle.os.rename", somebody_else_is_faster)
    assert write_next_bundle(tmp_path, new_bundle()) == tmp_path / "small" / "3"
    assert open_bundle(tmp_path / "small" / "3").manifest.version == "3"


@pytest.mark.parametrize(("name", "says"), [("../small", "can't be written: name: "), ("", "can't be written: name: ")])
def test_the_next_version_of_what_is_no_name(name, says, tmp_path):
    with pytest.raises(BundleError, match=says):
        write_next_bundle(tmp_path / "store", new_bundle(name=name))


def test_a_pipe_is_not_read(path):
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    assert refusal(open_bundle, path) == "small/1: manifest.json is missing or can't be read."


def test_the_committed_bundle_is_whole():
    opened = open_bundle(DEFAULT)
    assert len(read_labels(opened)) == 1000
    assert sum(value.size for value in read_weights(opened).values()) > 12_000_000
    assert opened.manifest.licence == "Apache-2.0"
