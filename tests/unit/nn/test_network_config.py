import copy
import json

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, CondConvDense, network_from_json, network_to_json, variable_shapes

pytestmark = pytest.mark.tensorflow


def network():
    pixels = keras.Input((None, None, 3), name="pixels")
    routing = layers.Dense(4, activation="sigmoid", name="router")(layers.GlobalAveragePooling2D()(pixels))
    x = CondConv2D(8, 3, 4, padding="same", activation="relu", name="condconv")(pixels, routing)
    x = keras.Sequential([layers.RandomFlip(), layers.Conv2D(8, 3, kernel_regularizer="l2")], name="inner")(x)
    x = keras.ops.relu(x[:, 1:] * 2.0 + 1.0)
    return keras.Model(pixels, CondConvDense(5, 4, name="logits")(layers.GlobalMaxPooling2D()(x), routing))


@pytest.fixture(scope="module")
def document():
    return json.loads(network_to_json(network()))


def test_a_network_comes_back_as_it_was():
    original = network()
    original.compile("adam", "mse")
    text = network_to_json(original)
    assert "adam" not in text
    found = network_from_json(text, image_size=16)
    assert found.inputs[0].shape == (None, 16, 16, 3), "an open size is fixed"
    for layer in original.layers:
        found.get_layer(layer.name).set_weights(layer.get_weights())
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    np.testing.assert_allclose(found(pixels, training=False), original(pixels, training=False), rtol=1e-6)
    assert variable_shapes(text, image_size=16) == {v.path: tuple(v.shape) for v in found.weights}


class OwnLayer(layers.Layer):
    def call(self, inputs):
        return inputs


def own_activation(x):
    return x


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (layers.Lambda(lambda x: x, name="mine"), "Lambda 'mine' can't be stored"),
        (OwnLayer(name="mine"), "OwnLayer 'mine' can't be stored"),
        (layers.Activation(own_activation), "The function 'own_activation' can't be stored"),
        (layers.TimeDistributed(layers.Dense(2), name="mine"), "TimeDistributed 'mine' can't be stored"),
    ],
)
def test_what_a_document_cannot_hold_is_named(layer, says):
    inputs = keras.Input((4, 3))
    with pytest.raises(ConfigurationError, match=says):
        network_to_json(keras.Model(inputs, layer(inputs)))


def hostile(where, item):
    """Puts an object into a document in place of the last layer, an activation, or an argument of a call."""

    def change(document):
        layer = document["network"]["config"]["layers"][-1]
        if where == "layer":
            layer.update(item)
        elif where == "activation":
            layer["config"]["activation"] = item
        else:
            layer["inbound_nodes"][0]["kwargs"]["training"] = item

    return change


def planted(kind):
    return {"module": "planted", "class_name": kind, "config": {}, "registered_name": None}


@pytest.mark.parametrize("where", ["layer", "activation", "argument"])
@pytest.mark.parametrize(
    "item",
    [
        planted("Dense"),
        planted("Boom") | {"module": "planted.keras.layers"},
        {"class_name": "function", "module": "planted", "config": "boom", "registered_name": "boom"},
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "system"},
        {"class_name": "__lambda__", "config": {"value": "eNo="}},
        {"class_name": "__typespec__", "spec_name": "Boom", "module": "planted", "registered_name": None, "config": []},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}, "registered_name": None},
        {
            "module": "keras.layers",
            "class_name": "TFSMLayer",
            "config": {"filepath": "/var/model"},
            "registered_name": None,
        },
        {"module": "keras.src.ops.core", "class_name": "Map", "config": {}, "registered_name": "Map"},
        {"module": "keras.src.ops.numpy", "class_name": "any_symbolic_tensors", "config": {}, "registered_name": None},
        {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}, "registered_name": "test>Registered"},
        {"module": "keras.optimizers", "class_name": "Adam", "config": {}, "registered_name": None},
        {"class_name": "Dense", "config": {"units": 1}},
        {"module": None, "class_name": "Dense", "config": {"units": 1}, "registered_name": None},
    ],
)
def test_hostile_objects_are_never_imported(where, item, document, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)

    @keras.saving.register_keras_serializable(package="test", name="Registered")
    class Registered(layers.Layer):
        def __init__(self, **_):
            (tmp_path / "ran").touch()

    changed = copy.deepcopy(document)
    if where == "layer" and "module" not in item:
        changed["network"]["config"]["layers"][-1].pop("module")
    hostile(where, item)(changed)
    for read in (network_from_json, variable_shapes):
        with pytest.raises(ConfigurationError):
            read(json.dumps(changed), image_size=16)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("format"), "must hold `format` and `network`"),
        (lambda d: d.update(format=2), "has format 2, not 1"),
        (lambda d: d.update(network=[]), "functional model"),
        (lambda d: d["network"].update(class_name="Sequential"), "functional model"),
        (lambda d: d["network"].update(compile_config={}), "not compiled"),
        (lambda d: d["network"]["config"].update(layers=[]), "Keras can't build the network"),
        (
            lambda d: d["network"]["config"]["layers"][-1]["config"].update(units="many"),
            "Keras can't build the network",
        ),
        (lambda d: d["network"]["config"]["layers"][-1]["config"].update(activation="x"), "Keras can't build the net"),
    ],
)
def test_damaged_documents(change, says, document):
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(ConfigurationError, match=says):
        network_from_json(json.dumps(changed), image_size=16)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '"x"', "[" * 100_000, '{"format": 1, "network": ' + '{"a":' * 900 + "1" + "}" * 901]
)
def test_no_document(text):
    with pytest.raises(ConfigurationError):
        network_from_json(text, image_size=16)


def test_too_long():
    with pytest.raises(ConfigurationError, match="are allowed"):
        network_from_json(" " * (8 * 2**20 + 1), image_size=16)


def test_shapes_of_a_giant_take_no_memory(document):
    changed = copy.deepcopy(document)
    changed["network"]["config"]["layers"][-1]["config"]["units"] = 10**12
    shapes = variable_shapes(json.dumps(changed), image_size=16)
    assert shapes["logits/kernel"] == (4, 8, 10**12)
    # Keras computes shapes of such layers by tracing them, after which it creates what waits for its values.
    OwnLayer()(keras.Input((3,)))
