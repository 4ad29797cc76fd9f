import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.domain import Preprocessing
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.nn import CondConv2D
from condconv_serve.runtime.loading import load_model
from condconv_serve.store import open_bundle
from condconv_serve.training import save_bundle
from tests.unit.store.samples import PLAN, replace_file

pytestmark = pytest.mark.training

PREPROCESSING = Preprocessing(transform="pillow", image_size=32, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
LABELS = ["cat", "dog", "Käse"]


def network(experts=(4, 2), size=32):
    x = inputs = keras.Input((size, size, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, use_bias=False)(x))
    for count in experts:
        routing = layers.Dense(count, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
        x = CondConv2D(8, 3, count, padding="same", activation="relu")(x, routing)
    x = layers.LayerNormalization()(x)  # a layer with variables that the engine computes as Keras does
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)))


GIVEN = {"name": "own", "labels": LABELS, "preprocessing": PREPROCESSING}


@pytest.fixture(scope="module")
def model(randomise):
    """A network that is only read."""
    return randomise(network())


@pytest.fixture
def saved(tmp_path, model):
    def save(other=None, **changes):
        return save_bundle(other or model, tmp_path, **GIVEN | changes)

    return save


@pytest.fixture(scope="module")
def kept(model, tmp_path_factory):
    return save_bundle(model, tmp_path_factory.mktemp("kept"), **GIVEN)


@pytest.fixture
def path(kept, tmp_path):
    """A bundle of one's own to change."""
    return shutil.copytree(kept, tmp_path / "own" / "1")


def test_trained_saved_and_served(saved):
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    rows, classes = rng.integers(0, 256, (16, 32, 32, 3), np.uint8), rng.integers(0, 3, 16)
    normalised = ((rows - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)).astype(np.float32)
    before = [np.array(variable) for variable in model.weights]
    model.fit(normalised, classes, epochs=2, verbose=0)
    assert all(np.any(np.array(variable) != old) for variable, old in zip(model.weights, before, strict=True))

    path = saved(model)
    served = load_model(open_bundle(path), PLAN)
    assert [label.label for label in served.info.labels] == LABELS
    assert (served.info.routing.experts, served.info.routing.shape) == ((4, 2), (2, 4))
    assert served.info.manifest.architecture.model_dump() == {"name": "keras"}
    assert served.info.cost.parameters == sum(int(np.prod(v.shape)) for v in model.trainable_weights)
    assert "4 experts" in served.info.model_card
    output = served.engine(rows)
    assert output["routing"].shape == (16, 2, 4)
    found = np.exp(output["logits"]) / np.exp(output["logits"]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, model(normalised, training=False), atol=1e-5)
    served.engine.close()


def test_a_network_that_names_its_features(saved, randomise):
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(6, 3, activation="relu")(inputs)
    outputs = {
        "logits": layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(x)),  # no last layer that reads one vector
        "features": layers.GlobalMaxPooling2D()(x),
    }
    model = randomise(keras.Model(inputs, outputs))
    served = load_model(open_bundle(saved(model)), PLAN)
    assert [(output.name, output.shape) for output in served.info.outputs][2:] == [("features", (6,))]
    rows = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = model((rows - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std), training=False)
    np.testing.assert_allclose(served.engine(rows)["features"], expected["features"], rtol=1e-4)
    served.engine.close()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"labels": ["cat"]}, BundleError, "1 labels were given for 3 classes"),
        ({"name": "Own"}, BundleError, "name: "),
        ({"version": 0}, BundleError, "version: "),
        (
            {"preprocessing": Preprocessing(transform="pillow", image_size=64)},
            ConfigurationError,
            "takes 32 x 32 pixels, but preprocessing.image_size is 64",
        ),
        ({"preprocessing": Preprocessing(transform="pillow", image_size=8)}, BundleError, "image_size: "),
    ],
)
def test_misfits_leave_nothing_behind(changes, error, says, saved, tmp_path):
    with pytest.raises(error, match=says):
        saved(**changes)
    assert list(tmp_path.iterdir()) == []


def test_versions_are_never_overwritten(saved):
    saved()
    with pytest.raises(BundleError, match="own/1 exists already"):
        saved(version=1)
    assert [saved(version=version).name for version in (7, None)] == ["7", "8"], "the next one if none is named"


def test_not_finite(saved, randomise):
    model = randomise(network())
    model.layers[-1].bias.assign([np.nan, 0, 0])
    with pytest.raises(ConfigurationError, match="not finite"):
        saved(model)


def change_network(path, change):
    document = json.loads((path / "network.json").read_text())
    change(document["network"]["config"])
    replace_file(path, "network.json", json.dumps(document).encode())


def units(count):
    return lambda config: config["layers"][-1]["config"].update(units=count)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (units(4), r"own/1: the weights don't fit the architecture: dense_\d+/kernel is \[1800, 3\] instead of"),
        (units(10**12), "the weights don't fit the architecture"),
        (lambda c: c["layers"][-1].update(module="os", class_name="system"), "own/1: system .* can't be stored"),
        (lambda c: c["layers"][0]["config"].update(batch_shape=[None, 48, 48, 3]), "own/1: "),
        (lambda c: c.update(output_layers=c["output_layers"]["logits"]), "own/1: the network must return logits and"),
    ],
)
def test_tampered_descriptions(change, says, path):
    change_network(path, change)
    with pytest.raises(BundleError, match=says):
        load_model(open_bundle(path), PLAN)


def test_a_description_is_checked_like_every_file(path):
    (path / "network.json").write_text("{}")
    with pytest.raises(BundleError, match=r"network\.json has 2 bytes, but the manifest says"):
        open_bundle(path)


def test_a_description_belongs_to_a_network_of_ones_own(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["architecture"]["name"] = "efficientnet-b0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"network\.json belongs to the architecture keras"):
        open_bundle(path)
