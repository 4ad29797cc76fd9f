"""Files that Keras writes, and what others might write into them."""

import io
import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import build_network
from condconv_serve.store.importers import import_weights
from condconv_serve.store.importers.keras_file import read_keras, translate_keras
from tests.contract.narrow_family import CONDCONV

pytestmark = pytest.mark.tensorflow

ARCHITECTURE = CONDCONV.changed(num_classes=3)  # which doesn't count
LIMIT = 10**8


@pytest.fixture(scope="module")
def network(narrow_family, randomise):
    return randomise(build_network(CONDCONV))


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    """A directory with both kinds of files, to be left as they are."""
    directory = tmp_path_factory.mktemp("written")
    network.save(directory / "model.keras")
    network.save_weights(directory / "model.weights.h5")
    return directory


@pytest.fixture(params=["model.keras", "model.weights.h5"])
def saved(request, written, tmp_path):
    """A file of one's own."""
    return shutil.copy(written / request.param, tmp_path / request.param)


@pytest.fixture
def weights_file(written, tmp_path):
    """A file of one's own to edit."""
    return shutil.copy(written / "model.weights.h5", tmp_path / "model.weights.h5")


def assert_same(weights, network):
    assert weights.keys() == {variable.path for variable in network.weights}
    for variable in network.weights:
        np.testing.assert_array_equal(weights[variable.path], np.array(variable), variable.path)


def test_what_keras_saves_is_read(saved, network):
    imported = import_weights(saved, ARCHITECTURE)
    assert imported.source.naming == "keras"
    assert imported.architecture.num_classes == 7
    assert_same(imported.weights, network)


def test_the_optimiser_is_left_aside(narrow_family, tmp_path):
    small = build_network(CONDCONV)
    small.compile("adam")
    small.optimizer.build(small.trainable_variables)
    small.save(tmp_path / "trained.keras")
    assert any(name.startswith("optimizer") for name in read_keras(tmp_path / "trained.keras", max_bytes=LIMIT))
    assert_same(import_weights(tmp_path / "trained.keras", ARCHITECTURE).weights, small)


def test_files_without_names_of_layers(network, weights_file):
    """Older versions of Keras number the layers of each class, and that's all."""
    with h5py.File(weights_file, "r+") as store:
        named = []
        store.visititems(lambda place, item: named.append(item) if "name" in item.attrs else None)
        for item in named:
            del item.attrs["name"]
    assert len(named) >= len([layer for layer in network.layers if layer.weights])
    assert_same(import_weights(weights_file, ARCHITECTURE).weights, network)


def test_code_in_a_model_is_not_looked_at(network, written, tmp_path):
    """A `.keras` file with a Lambda layer would be code; nothing but its weights is read."""
    hostile = {"module": "builtins", "class_name": "function", "config": "import os; os.abort()"}
    with zipfile.ZipFile(written / "model.keras") as before, zipfile.ZipFile(tmp_path / "evil.keras", "w") as after:
        after.writestr("config.json", json.dumps({"class_name": "Lambda", "config": {"function": hostile}}))
        after.writestr("model.weights.h5", before.read("model.weights.h5"))
    assert_same(import_weights(tmp_path / "evil.keras", ARCHITECTURE).weights, network)


def edited(file, change):
    with h5py.File(file, "r+") as store:
        change(store, file.parent)
    return file


def external_link(store, directory):
    with h5py.File(directory / "other.h5", "w") as other:
        other["secret"] = np.arange(5.0)
    del store["layers/dense/vars/1"]
    store["layers/dense/vars/1"] = h5py.ExternalLink(str(directory / "other.h5"), "secret")


def soft_link(store, directory):
    del store["layers/dense/vars/1"]
    store["layers/dense/vars/1"] = h5py.SoftLink("/layers/dense_1/vars/1")


def external_dataset(store, directory):
    (directory / "raw").write_bytes(bytes(16))
    del store["layers/dense/vars/1"]
    store["layers/dense/vars"].create_dataset("1", (4,), "f4", external=[(str(directory / "raw"), 0, 16)])


def virtual_dataset(store, directory):
    del store["layers/dense/vars/1"]
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(directory / "other.h5"), "secret", (4,))
    store["layers/dense/vars"].create_virtual_dataset("1", layout)


@pytest.mark.parametrize("change", [external_link, soft_link, external_dataset, virtual_dataset])
def test_links_to_other_files_are_refused(change, weights_file):
    file = edited(weights_file, change)
    with pytest.raises(ImportFailed, match="holds layers/dense/vars/1, which links to another place"):
        read_keras(file, max_bytes=LIMIT)


def extra(store, directory):
    store["layers/extra/vars/0"] = np.zeros(3, np.float32)


def missing(store, directory):
    del store["layers/dense/vars/1"]


def misshaped(store, directory):
    del store["layers/dense/vars/1"]
    store["layers/dense/vars"]["1"] = np.zeros(5, np.float32)


def not_finite(store, directory):
    store["layers/dense/vars/1"][...] = np.nan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (extra, "left over: layers/extra/vars/0."),
        (missing, "missing: block_2_routing/bias."),
        (misshaped, "misshaped: block_2_routing/vars/1 is [5], but block_2_routing/bias is [4]."),
        (not_finite, "not finite: block_2_routing/vars/1."),
    ],
)
def test_misfits_are_named(change, says, weights_file):
    with pytest.raises(ImportFailed) as caught:
        import_weights(edited(weights_file, change), ARCHITECTURE)
    assert f"don't fit narrow-condconv-4e: {says}" in str(caught.value)


def test_two_layers_of_one_name(weights_file):
    def rename(store, directory):
        store["layers/dense_1/vars"].attrs["name"] = "block_2_routing"

    with pytest.raises(ImportFailed, match="two layers called block_2_routing"):
        read_keras(edited(weights_file, rename), max_bytes=LIMIT)


def test_more_than_allowed(saved):
    with pytest.raises(ImportFailed, match="1000 "):
        read_keras(saved, max_bytes=1000)


def test_a_compressed_giant_is_not_unpacked(tmp_path):
    """A file of kilobytes whose tensor has a billion numbers."""
    with h5py.File(tmp_path / "bomb.weights.h5", "w") as store:
        store.create_dataset("layers/dense/vars/0", (10**9,), "f4", chunks=(10**6,), compression="gzip")
    assert (tmp_path / "bomb.weights.h5").stat().st_size < 10**6
    with pytest.raises(ImportFailed, match="holds more than 100000000 bytes"):
        read_keras(tmp_path / "bomb.weights.h5", max_bytes=LIMIT)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated(share, saved):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImportFailed, match="can't be read as weights of Keras"):
        read_keras(saved, max_bytes=LIMIT)


def test_an_archive_without_weights(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    (tmp_path / "empty.keras").write_bytes(buffer.getvalue())
    with pytest.raises(ImportFailed, match=r"^empty\.keras can't be read as weights of Keras"):
        read_keras(tmp_path / "empty.keras", max_bytes=LIMIT)


def test_a_network_inside_another(network, tmp_path):
    """The names of layers count, not how deep they lie."""
    outer = keras.Sequential([keras.Input((32, 32, 3)), keras.Model(network.inputs, network.output["logits"])])
    outer.save_weights(tmp_path / "outer.weights.h5")
    translation = translate_keras(read_keras(tmp_path / "outer.weights.h5", max_bytes=LIMIT), network)
    assert {tensor.path for tensor in translation.tensors} == {variable.path for variable in network.weights}
