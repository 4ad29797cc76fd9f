from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.domain import Preprocessing, RoutingLayout
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.outputs import routing_layout, with_routing
from tests.unit.runtime.samples import small_efficientnet

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
    ],
)
def test_other_networks_are_refused(network: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        with_routing(network())


def test_freezing_a_subclassed_model_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="only functional models can be served"):
        freeze(Subclassed(name="mine"), PREPROCESSING)
