"""What timm's configurations say, in each place and layout."""

import argparse
import json

import pytest

from condconv_serve.domain import Label
from condconv_serve.errors import ImportFailed
from condconv_serve.store.importers.source_config import (
    SourceConfig,
    check_architecture,
    config_from_arguments,
    config_from_metadata,
    crop_padding,
    parse_config,
    read_config,
)

pytestmark = pytest.mark.tensorflow

PRETRAINED = {
    "input_size": [3, 240, 240],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.5, 0.5],
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "num_classes": 2,
    "first_conv": "conv_stem",
    "license": "apache-2.0",
}
NEW = {"architecture": "tf_efficientnet_lite0", "num_classes": 2, "pretrained_cfg": PRETRAINED | {"tag": "my_in1k"}}
OLD = {"architecture": "tf_efficientnet_lite0", "labels": ["cat", "dog"], **PRETRAINED}
SAID = SourceConfig(
    origin="here",
    architecture="tf_efficientnet_lite0",
    image_size=240,
    mean=(127.5,) * 3,
    std=(63.75, 127.5, 127.5),
    interpolation="bilinear",
    crop_pct=0.9,
    crop_mode="center",
)
NAMED = (Label(0, "cat"), Label(1, "dog"))


def parse(document):
    return parse_config(document, origin="here")


def fields(config, **changes):
    return {name: getattr(config, name) for name in SourceConfig.__dataclass_fields__} | changes


def test_both_layouts():
    assert fields(parse(NEW)) == fields(SAID, imagenet=True)
    assert fields(parse(OLD)) == fields(SAID, labels=NAMED)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"label_names": ["cat", "dog"]}, NAMED),
        ({"label_names": ["cat", "dog"], "label_descriptions": {"cat": "a small one"}}, NAMED),
        (
            {"label_names": ["n01440764", "n01443537"], "label_descriptions": {"n01440764": "tench"}},
            (Label(0, "tench", "n01440764"), Label(1, "n01443537", "n01443537")),
        ),
        (
            {"label_names": ["n01440764", "n01443537"], "label_descriptions": ["tench", "goldfish"]},
            (Label(0, "tench", "n01440764"), Label(1, "goldfish", "n01443537")),
        ),
        ({"pretrained_cfg": PRETRAINED | {"label_names": ["cat", "dog"]}}, NAMED),
        ({"label_names": ["cat", "dog"], "pretrained_cfg": PRETRAINED | {"label_names": ["old"]}}, NAMED),
        ({"label_names": None}, None),
    ],
)
def test_labels(given, labels):
    assert parse(NEW | given).labels == labels


def test_what_timm_takes_if_nothing_is_said():
    found = parse({"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"input_size": [3, 224, 224], "mean": None}})
    assert (found.mean, found.interpolation, found.crop_pct) == ((123.675, 116.28, 103.53), "bicubic", 0.875)
    bare = parse({"label_names": ["cat", "dog"]})
    assert (bare.labels, bare.mean, bare.crop_pct) == (NAMED, None, None), "no configuration of a network"


def test_sizes_of_the_test_count():
    tested = parse({"input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "test_crop_pct": 1.0})
    assert (tested.image_size, tested.crop_pct) == (288, 1.0)


def test_beside_the_weights(tmp_path):
    assert read_config(tmp_path / "w.safetensors") is None
    (tmp_path / "config.json").write_text(json.dumps(NEW))
    assert read_config(tmp_path / "w.safetensors").image_size == 240
    (tmp_path / "config.json").write_text('{"learning_rate": 1, "seeds": [3]}')
    assert read_config(tmp_path / "w.safetensors") is None, "of another program"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ImportFailed, match=r"^config\.json, which lies beside w\.safetensors, can't be read as JSON"):
        read_config(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "pt", "config": json.dumps(OLD)},
        {
            "pretrained_cfg": json.dumps(PRETRAINED),
            "label_names": '["cat", "dog"]',
            "architecture": OLD["architecture"],
        },
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in OLD.items()},
    ],
)
def test_in_metadata(metadata):
    assert fields(config_from_metadata(metadata, origin="here")) == fields(SAID, labels=NAMED)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "pt", "config": "x"}])
def test_metadata_that_says_nothing(metadata):
    assert config_from_metadata(metadata, origin="here") is None


def test_arguments_of_training():
    given = argparse.Namespace(
        model="tf_efficientnet_lite0", mean=[0.5], std=None, img_size=240, interpolation="", lr=1
    )
    found = config_from_arguments({"arch": "tf_efficientnet_lite0", "args": given}, origin="here")
    assert (found.architecture, found.image_size, found.mean) == ("tf_efficientnet_lite0", 240, (127.5,) * 3)
    assert (found.std, found.interpolation, found.crop_pct) == (None, None, None), "not given, so not known"
    assert config_from_arguments({"epoch": 3}, origin="here") is None
    assert config_from_arguments({"args": {"lr": 3}}, origin="here") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": [127, 127, 127]}, r"^here: mean can't be used"),
        ({"std": [0, 1, 1]}, r"^here: std can't be used"),
        ({"crop_pct": -1}, r"^here: crop_pct can't be used"),
        ({"crop_pct": float("nan")}, r"^here: crop_pct can't be used"),
        ({"input_size": [1, 224, 224]}, r"^here: the input is \[1, 224, 224\], but networks here take squares of 3"),
        ({"input_size": [3, 224, 192]}, r"^here: the input is \[3, 224, 192\]"),
        ({"label_names": [1, 2]}, r"^here: label_names can't be used"),
    ],
)
def test_impossible_values(change, says):
    with pytest.raises(ImportFailed, match=says):
        parse(OLD | change)


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/efficientnet_lite0.ra_in1k"])
def test_networks_that_only_look_alike(name):
    with pytest.raises(ImportFailed, match="pads symmetrically"):
        check_architecture(parse(NEW | {"architecture": name}))
    for other in ("tf_efficientnet_lite0.in1k", "efficientnet-b0", None):
        check_architecture(parse(NEW | {"architecture": other}))


@pytest.mark.parametrize(
    ("size", "share", "padding"), [(224, 0.875, 32), (240, 0.882, 32), (224, 1.0, 0), (224, 0.9, 24)]
)
def test_crop(size, share, padding):
    assert crop_padding(size, share) == padding
