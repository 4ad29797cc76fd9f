import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConvDense, build_network, get_architecture
from condconv_serve.runtime.outputs import with_routing
from condconv_serve.training.frozen import split_network
from condconv_serve.training.network import set_trainable, with_classes
from tests.unit.training.samples import small_network

pytestmark = pytest.mark.tensorflow

PIXELS = np.random.default_rng(0).normal(size=(2, 32, 32, 3))


def learning(network):
    return {layer.name for layer in network.layers if layer.trainable_variables}


def test_a_fresh_head(randomise):
    network = randomise(with_routing(small_network()))
    fresh = with_classes(network, 7)
    before, after = network(PIXELS, training=False), fresh(PIXELS, training=False)
    assert np.asarray(after["logits"]).tolist() == [[0.0] * 7] * 2
    for block, weights in before["routing"].items():
        np.testing.assert_array_equal(after["routing"][block], weights)
    assert {v.path for v in fresh.weights} == {v.path for v in network.weights}


@pytest.mark.parametrize(
    ("part", "layers_that_learn"),
    [
        ("head", {"logits"}),
        ("routing", {"logits", "block_0_routing", "block_1_routing"}),
        ("experts", {"logits", "block_0_routing", "block_1_routing", "block_0_conv", "block_1_conv"}),
        ("all", {"logits", "block_0_routing", "block_1_routing", "block_0_conv", "block_1_conv", "stem"}),
    ],
)
def test_what_learns(part, layers_that_learn):
    network = with_routing(small_network())
    parameters = set_trainable(network, part)
    assert learning(network) == layers_that_learn
    assert parameters == sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert set_trainable(network, "all") >= parameters, "and back again"


def test_our_own_architectures():
    network = build_network(
        get_architecture("efficientnet-lite0-condconv-4e", width_coefficient=0.1, num_classes=3), input_size=32
    )
    set_trainable(with_classes(network, 5), "routing")
    assert learning(with_classes(network, 5)) == {"logits", *(f"block_{i}_routing" for i in range(8, 16))}


def test_a_head_with_experts(randomise):
    inputs = keras.Input((32, 32, 3))
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(inputs))
    routing = layers.Dense(4, activation="sigmoid", name="classifier_routing")(features)
    logits = CondConvDense(3, 4, name="classifier")(layers.Dropout(0.5)(features), routing)
    network = randomise(with_routing(keras.Model(inputs, logits)))
    fresh = with_classes(network, 7)
    before, after = network(PIXELS, training=False), fresh(PIXELS, training=False)
    assert 0 < np.abs(after["logits"]).max() < 0.1, "no class is preferred by much"
    kernel = np.asarray(fresh.get_layer("classifier").kernel)
    np.testing.assert_allclose(kernel.mean(axis=0), 0, atol=1e-7)
    assert kernel.std(axis=0).min() > 0, "experts differ, so that they can learn apart"
    np.testing.assert_array_equal(after["routing"]["classifier"], before["routing"]["classifier"])
    split = split_network(network)
    ends = split.head(split.backbone(PIXELS)["features"], training=False)
    np.testing.assert_allclose(ends, before["logits"], rtol=1e-5, atol=1e-6)
    assert set_trainable(network, "head") == 4 * (8 + 1) * 3
    assert learning(network) == {"classifier"}
    set_trainable(network, "routing")
    assert learning(network) == {"classifier", "classifier_routing"}


def test_static_networks_have_no_routing():
    inputs = keras.Input((32, 32, 3))
    network = with_routing(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs))))
    for part in ("routing", "experts"):
        with pytest.raises(ConfigurationError, match="no CondConv blocks, so only `all` or `head`"):
            set_trainable(network, part)
    assert set_trainable(network, "head") == 3 * 32 * 32 * 3 + 3


def test_only_a_dense_layer_can_be_replaced():
    inputs = keras.Input((32, 32, 3))
    network = with_routing(keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1)(inputs))))
    with pytest.raises(ConfigurationError, match="ends in a GlobalAveragePooling2D, but only a Dense or CondConvDense"):
        with_classes(network, 4)
