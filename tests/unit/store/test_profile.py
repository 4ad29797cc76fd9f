"""Reference routing profiles in bundles."""

import json
import os
from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from condconv_serve import files
from condconv_serve.domain import RoutingProfile
from condconv_serve.errors import BundleError
from condconv_serve.routing.profile import profile_of
from condconv_serve.store import add_profile, open_bundle, read_profile, write_bundle
from condconv_serve.store.profile import parse_profile, profile_name, serialise_profile
from tests.contract.fakes import even_layout
from tests.unit.store.samples import DEFAULT, new_bundle, replace_file


def some_profile(seed=0, *, blocks=2, experts=3):
    rng = np.random.default_rng(seed)
    return profile_of(rng.random((30, blocks, experts)), rng.integers(0, 3, 30), even_layout(blocks, experts))


def assert_same(one, other):
    for field in fields(RoutingProfile):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path, new_bundle())


def profiles_in(path):
    return [file.name for file in path.iterdir() if file.name.startswith("routing_profile.")]


def test_a_new_bundle_may_carry_one(tmp_path):
    profile = some_profile()
    bundle = open_bundle(write_bundle(tmp_path, new_bundle(routing_profile=profile)))
    assert_same(read_profile(bundle), profile)
    assert profiles_in(bundle.path) == [bundle.manifest.routing_profile]


def test_without_one(path):
    assert read_profile(open_bundle(path)) is None


def test_one_is_added_and_replaced(path):
    before = open_bundle(path).manifest
    for seed in (1, 2, 2):
        bundle = add_profile(path, some_profile(seed))
        assert_same(read_profile(bundle), some_profile(seed))
        assert profiles_in(path) == [bundle.manifest.routing_profile]
    assert {n: s for n, s in bundle.manifest.files.items() if n != bundle.manifest.routing_profile} == before.files
    assert before.model_copy(update={"files": {}}) == bundle.manifest.model_copy(update={"files": {}})
    assert not [file for file in path.iterdir() if file.name.startswith(".")]
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}


@pytest.mark.parametrize("fails_at", [0, 1])
@pytest.mark.parametrize("had_one", [False, True])
def test_a_full_disk_leaves_the_bundle_as_it_was(path, monkeypatch, fails_at, had_one):
    if had_one:
        add_profile(path, some_profile(1))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    calls = []
    original = files.flush

    def flush(*args, **kwargs):
        calls.append(args)
        if len(calls) == fails_at + 1:
            raise OSError(28, "No space left on device")
        original(*args, **kwargs)

    monkeypatch.setattr(files, "flush", flush)
    with pytest.raises(OSError, match="No space"):
        add_profile(path, some_profile(2))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    open_bundle(path)


def test_whoever_reads_meanwhile_sees_one_or_the_other(path, monkeypatch):
    """Before and after each step the bundle is whole."""
    add_profile(path, some_profile(1))
    original = os.replace
    seen = []

    def replace_and_look(*args):
        seen.append(open_bundle(path).manifest.routing_profile)
        original(*args)
        seen.append(open_bundle(path).manifest.routing_profile)

    monkeypatch.setattr(os, "replace", replace_and_look)
    add_profile(path, some_profile(2))
    names = [profile_name(serialise_profile(some_profile(seed))) for seed in (1, 2)]
    assert seen == [names[0], names[0], names[0], names[1]]


def change(**tensors):
    content = load(serialise_profile(some_profile()))
    content |= tensors
    return save({name: value for name, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "can't be read"),
        (b"PK\x03\x04", "can't be read"),
        (change(mean=None), "mean missing or not part of it"),
        (change(more=np.zeros(1, np.float32)), "more missing or not part of it"),
        (change(mean=np.zeros((2, 3))), "mean is float64 instead of float32"),
        (change(mean=np.full((2, 3), np.nan, np.float32)), "negative or not finite"),
        (change(load=np.full((2, 3), -1, np.float32)), "negative or not finite"),
        (change(mean=np.zeros(6, np.float32)), "mean must be"),
        (change(deviation=np.zeros((3, 2), np.float32)), r"deviation has shape \(3, 2\)"),
        (change(class_mean=np.zeros((9, 2, 3), np.float32)), "class_mean has shape"),
        (change(histogram=np.zeros((2, 3, 20), np.int64)), "don't add up"),
        (change(images=np.array(31)), "don't add up"),
        (change(classes=np.array([2, 1, 0])), "ascending"),
    ],
)
def test_damage_is_named(content, says):
    with pytest.raises(BundleError, match=says):
        parse_profile(content)


def test_damage_in_a_bundle_names_the_bundle(path):
    name = add_profile(path, some_profile()).manifest.routing_profile
    replace_file(path, name, b"nonsense")
    with pytest.raises(BundleError, match=rf"small/1: {name}: can't be read"):
        read_profile(open_bundle(path))
    (path / name).unlink()
    with pytest.raises(BundleError, match=rf"small/1: {name} is missing"):
        open_bundle(path)


def test_the_manifest_takes_no_other_names(path):
    document = json.loads((path / "manifest.json").read_text())
    document["files"]["routing_profile.safetensors"] = {"size": 1, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"manifest\.json is not valid"):
        open_bundle(path)


def test_the_shipped_model_has_one():
    bundle = open_bundle(DEFAULT)
    profile = read_profile(bundle)
    assert profile is not None
    assert profile.images == 250
    assert profile.mean.shape == (8, 4)
    assert 0.1 < profile.deviation.mean() < 0.3


def test_profiles_are_compared_by_identity():
    profile = some_profile()
    assert profile != replace(profile)
