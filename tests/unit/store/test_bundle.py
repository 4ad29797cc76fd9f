import errno
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save

from condconv_serve.errors import BundleError
from condconv_serve.store import bundle as bundle_module
from condconv_serve.store import open_bundle, read_labels, read_weights, write_bundle
from tests.unit.store.samples import DEFAULT, new_bundle, of_float8, read_all, replace_file, rewrite


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path, new_bundle())


def refusal(action, path):
    """The message of the refusal, which must not tell where the store lies."""
    with pytest.raises(BundleError) as caught:
        action(path)
    assert str(path.parents[1]) not in str(caught.value)
    return str(caught.value)


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
    "infinity": (
        weights(a=np.zeros(2, np.float32), b=np.array([-np.inf], np.float16)),
        "b holds numbers that are not finite.",
    ),
    "too big for float32": (weights(a=np.array([1e300])), "a holds numbers that are not finite."),
    "a variance below 0": (
        weights(**{"norm/moving_variance": np.array([1, 0, -2], np.float32)}),
        "norm/moving_variance holds variances below 0, down to -2.",
    ),
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


def test_weights_of_a_type_that_numpy_does_not_know(path):
    replace_file(path, "weights.safetensors", of_float8())
    message = refusal(read_all, path)
    assert message.startswith("small/1: weights.safetensors can't be read (its numbers are of a type")


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


def test_a_pipe_is_not_read(path):
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    assert refusal(open_bundle, path) == "small/1: manifest.json is missing or can't be read."


def test_the_committed_bundle_is_whole():
    opened = open_bundle(DEFAULT)
    assert len(read_labels(opened)) == 1000
    assert sum(value.size for value in read_weights(opened).values()) > 12_000_000
    assert opened.manifest.licence == "Apache-2.0"
