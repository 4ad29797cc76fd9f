from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.domain import OutputSpec, Preprocessing, RoutingLayout
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import (
    CondConv2D,
    CondConvDense,
    DepthwiseCondConv2D,
    network_from_json,
    network_to_json,
    outline,
)
from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.outputs import find_features, output_specs, routing_layout, with_features, with_routing
from tests.unit.runtime.samples import DISTINCT, small_efficientnet, small_network

pytestmark = pytest.mark.tensorflow

PREPROCESSING = Preprocessing(transform="pillow", image_size=16)
Randomise = Callable[[Any], Any]
Run = Callable[..., Any]
AssertClose = Callable[..., None]


def route(x: Any, experts: int, name: str | None = None, activation: str = "sigmoid") -> Any:
    return layers.Dense(experts, activation=activation, name=name)(layers.GlobalAveragePooling2D()(x))


def head(x: Any, classes: int = 5, **options: Any) -> Any:
    return layers.Dense(classes, name="logits", **options)(layers.GlobalAveragePooling2D()(x))


def uneven(last: Callable[[Any], Any] | None = None) -> Any:
    """Blocks of two, four and three experts, one of them with two layers, one routed by a softmax."""
    x = inputs = keras.Input((16, 16, 3))
    first = route(x, 2, "first_routing")
    x = CondConv2D(8, 3, 2, padding="same", activation="relu")(x, first)
    second = route(x, 4, "second")
    x = DepthwiseCondConv2D(3, 4, strides=2)(x, routing_weights=second)
    x = CondConv2D(12, 1, 4, activation="swish")(x, second)
    x = CondConv2D(8, 3, 3, strides=2)(x, route(x, 3, "third_routing", "softmax"))
    return keras.Model(inputs, head(x) if last is None else last(x))


def test_routing_is_found_in_the_networks_order(
    randomise: Randomise, run_graph: Run, assert_close: AssertClose
) -> None:
    network = randomise(with_routing(uneven()))
    assert routing_layout(network) == RoutingLayout(("first", "second", "third"), (2, 4, 3))
    rows = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    found = run_graph(freeze(network, PREPROCESSING), rows)
    expected = network((rows.astype(np.float32) - 127) / 128, training=False)
    assert_close(found["logits"], expected["logits"], 1e-4)
    assert found["routing"].shape == (5, 3, 4)
    for position, (block, weights) in enumerate(expected["routing"].items()):
        experts = weights.shape[-1]
        assert_close(found["routing"][:, position, :experts], weights, 1e-4)
        assert (found["routing"][:, position, experts:] == 0).all(), block


def test_our_own_networks_give_the_same_blocks() -> None:
    network = small_efficientnet("efficientnet-condconv-b0-4e", image_size=32)
    by_search = with_routing(keras.Model(network.inputs[0], network.output["logits"]))
    assert routing_layout(by_search) == routing_layout(network)
    assert len(routing_layout(network).blocks) == 4


def softmax_layer(x: Any) -> Any:
    return layers.Softmax()(head(x))


def softmax_activation(x: Any) -> Any:
    return layers.Activation("softmax")(head(x))


def softmax_dense(x: Any) -> Any:
    return head(x, activation="softmax")


@pytest.mark.parametrize("last", [softmax_layer, softmax_activation, softmax_dense])
def test_a_final_softmax_is_left_out(last: Callable[[Any], Any], randomise: Randomise) -> None:
    original = randomise(uneven(last))
    pixels = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
    logits = with_routing(original)(pixels, training=False)["logits"]
    assert not np.allclose(np.sum(logits, axis=1), 1)
    np.testing.assert_allclose(keras.ops.softmax(logits), original(pixels, training=False), rtol=1e-4)


def test_models_inside_are_dissolved(randomise: Randomise) -> None:
    inner_inputs = keras.Input((16, 16, 3), name="inner_pixels")
    y = CondConv2D(4, 3, 3)(inner_inputs, route(inner_inputs, 3, "deep_routing"))
    inner = keras.Model(inner_inputs, y, name="inner")
    plain = keras.Sequential([layers.RandomFlip(), layers.Rescaling(2.0)], name="plain")
    original = randomise(
        keras.Sequential([keras.Input((16, 16, 3)), plain, inner, layers.GlobalMaxPooling2D(), layers.Dense(5)])
    )
    found = with_routing(original)
    assert routing_layout(found) == RoutingLayout(("deep",), (3,))
    assert [layer.name for layer in found.layers if isinstance(layer, keras.Model)] == ["plain"]
    pixels = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
    np.testing.assert_allclose(
        found(pixels, training=False)["logits"], original(pixels, training=False), rtol=1e-5, atol=1e-6
    )


def test_a_network_without_experts_is_served_too(run_graph: Run) -> None:
    inputs = keras.Input((16, 16, 3))
    network = with_routing(keras.Model(inputs, head(layers.Conv2D(4, 3)(inputs))))
    assert run_graph(freeze(network, PREPROCESSING), np.zeros((2, 16, 16, 3), np.uint8))["routing"].shape == (2, 0, 0)


def test_blocks_may_be_named_by_the_network() -> None:
    inputs = keras.Input((16, 16, 3))
    router = route(inputs, 2)
    logits = head(CondConv2D(4, 3, 2)(inputs, router))
    network = keras.Model(inputs, {"logits": logits, "routing": {"the one": router}})
    assert routing_layout(with_routing(network)) == RoutingLayout(("the one",), (2,))


class Subclassed(keras.Model):
    def call(self, inputs: Any) -> Any:
        return inputs


def model(apply: Callable[[Any], Any], shape: tuple[int, ...] = (16, 16, 3)) -> Any:
    inputs = keras.Input(shape)
    return keras.Model(inputs, apply(inputs))


def two_inputs() -> Any:
    inputs, routing = keras.Input((16, 16, 3)), keras.Input((2,))
    return keras.Model([inputs, routing], head(CondConv2D(4, 3, 2)(inputs, routing)))


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: Subclassed(name="mine"), "'mine' is a Subclassed.*write it as keras.Model"),
        (lambda: keras.Sequential([layers.Dense(5)]), "without an Input"),
        (lambda: model(head, (16, 16, 1)), r"needs one input \[batch, height, width, 3\], not \(None, 16, 16, 1\)"),
        (two_inputs, "needs one input"),
        (lambda: model(lambda x: [head(x), x]), "not 2 outputs"),
        (lambda: model(lambda x: {"logits": head(x), "more": x}), "not 2 outputs"),
        (lambda: model(layers.Conv2D(5, 3)), r"must be \[batch, classes\]"),
        (lambda: model(lambda x: head(x, 1, activation="sigmoid")), "at least two classes"),
        (lambda: model(lambda x: head(x, activation="sigmoid")), "'logits' has the activation 'sigmoid'"),
        (lambda: model(lambda x: {"logits": head(x), "routing": {"a": x}}), r"'a' must be \[batch, experts\]"),
        (lambda: model(lambda x: {"logits": head(x), "features": x}), r"`features` must be \[batch, features\]"),
    ],
)
def test_other_networks_are_refused(network: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        with_routing(network())


def test_freezing_a_subclassed_model_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="only functional models can be served"):
        freeze(Subclassed(name="mine"), PREPROCESSING)


def pooled(x: Any, **options: Any) -> Any:
    return layers.GlobalAveragePooling2D(name="features", **options)(layers.Conv2D(6, 3, name="conv")(x))


def by_a_convolution(x: Any) -> Any:
    """As MobileNet V1 ends."""
    x = layers.Dropout(0.5)(pooled(x, keepdims=True))
    return layers.Reshape((5,))(layers.Conv2D(5, 1)(x))


def by_a_condconv(x: Any) -> Any:
    routing = route(x, 3)
    return layers.Flatten()(CondConv2D(5, 1, 3)(pooled(x, keepdims=True), routing))


def by_a_dense_condconv(x: Any) -> Any:
    """Routed by the very features that it reads."""
    features = pooled(x)
    return CondConvDense(5, 3)(layers.Dropout(0.2)(features), layers.Dense(3, activation="sigmoid")(features))


def scaled(x: Any) -> Any:
    return keras.ops.multiply(layers.Dense(5)(pooled(x)), 0.1)


def by_two_layers(x: Any) -> Any:
    hidden = layers.Dense(6, activation="relu", name="hidden")(layers.Flatten()(x))
    return layers.Dense(5)(layers.Identity(name="features")(hidden))


def by_an_inner_model(x: Any) -> Any:
    inputs = keras.Input((14, 14, 6))
    y = layers.GlobalAveragePooling2D(name="features")(inputs)
    inner = keras.Model(inputs, layers.Dense(5, activation="softmax")(y))
    outer_inputs = keras.Input(x.shape[1:])
    outer = keras.Model(outer_inputs, inner(layers.Conv2D(6, 3)(outer_inputs)))
    return outer(x)


FOUND = {
    "pooled": lambda x: layers.Dense(5)(pooled(x)),
    "dropout": lambda x: layers.Dense(5)(layers.Dropout(0.5)(pooled(x))),
    "softmax": lambda x: layers.Softmax()(layers.Dense(5)(pooled(x))),
    "softmax of the layer": lambda x: layers.Dense(5, activation="softmax")(pooled(x)),
    "norm after the last layer": lambda x: layers.BatchNormalization()(layers.Dense(5)(pooled(x))),
    "scaled": scaled,
    "convolution": by_a_convolution,
    "CondConv": by_a_condconv,
    "dense CondConv": by_a_dense_condconv,
    "two layers": by_two_layers,
    "inner models": by_an_inner_model,
}


def output_of(network: Any, name: str) -> Any:
    (call,) = [call for call in ModelGraph(network).calls if call.operation.name == name]
    return call.outputs[0]


@pytest.mark.parametrize("last", FOUND.values(), ids=FOUND)
def test_features_are_what_the_last_layer_reads(
    last: Callable[[Any], Any], randomise: Randomise, run_graph: Run, assert_close: AssertClose
) -> None:
    network = randomise(with_routing(model(last)))
    assert OutputSpec("features", (6,)) in output_specs(network)
    rows = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    wanted = keras.Model(network.inputs[0], output_of(network, "features"))
    expected = np.asarray(wanted((rows.astype(np.float32) - 127) / 128, training=False)).reshape(3, 6)
    assert_close(run_graph(freeze(network, PREPROCESSING), rows)["features"], expected, 1e-4)


def pooled_at_last(x: Any) -> Any:
    """As SqueezeNet ends."""
    return layers.GlobalAveragePooling2D()(layers.Conv2D(5, 1)(x))


def summed(x: Any) -> Any:
    return layers.Add()([layers.Dense(5)(pooled(x)), layers.Dense(5)(layers.Flatten()(x))])


def without_a_last_layer(x: Any) -> Any:
    return layers.GlobalMaxPooling2D()(layers.Conv2D(5, 3)(x))


@pytest.mark.parametrize("last", [pooled_at_last, summed, without_a_last_layer])
def test_networks_without_features(last: Callable[[Any], Any], run_graph: Run) -> None:
    network = with_routing(model(last))
    assert find_features(network) is None
    assert with_features(network) is network
    assert [output.name for output in output_specs(network)] == ["logits", "routing"]
    assert list(run_graph(freeze(network, PREPROCESSING), np.zeros((2, 16, 16, 3), np.uint8))) == ["logits", "routing"]


def test_features_may_be_named_by_the_network(randomise: Randomise, run_graph: Run, assert_close: AssertClose) -> None:
    def last(x: Any) -> Any:
        features = layers.GlobalMaxPooling2D(name="mine")(layers.Conv2D(4, 3)(x))
        return {"logits": pooled_at_last(x), "features": features}

    network = with_routing(model(last))
    network = randomise(network_from_json(network_to_json(network), image_size=16))
    assert output_specs(network)[-1] == OutputSpec("features", (4,))
    rows = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    expected = network((rows.astype(np.float32) - 127) / 128, training=False)["features"]
    assert_close(run_graph(freeze(network, PREPROCESSING), rows)["features"], expected, 1e-4)


@pytest.mark.parametrize("name", DISTINCT)
def test_every_family_has_features(name: str) -> None:
    network = outline(lambda: small_network(name, image_size=32))
    features = find_features(network)
    assert features is not None
    assert features.shape[-1] == network.get_layer("logits").kernel.shape[-2]
