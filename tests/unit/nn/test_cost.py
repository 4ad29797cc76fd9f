import keras
import pytest

from condconv_serve.domain import Cost
from condconv_serve.nn import (
    CondConv2D,
    CondConvDense,
    DepthwiseCondConv2D,
    build_network,
    cost,
    get_architecture,
    outline,
)

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("efficientnet-b0", 5.3, 391),
        ("efficientnet-condconv-b0-4e", 13.3, 402),
        ("efficientnet-condconv-b0-8e", 24.0, 413),
        ("efficientnet-condconv-b0-8e-depth", 39.7, 614),
        ("efficientnet-b1", 7.8, 696),
        ("efficientnet-b7", 66.3, 38012),
    ],
)
def test_published_costs_in_millions(name, parameters, multiply_adds):
    found = cost(outline(lambda: build_network(get_architecture(name))))
    assert round(found.parameters / 1e6, 1) == parameters
    assert round(found.multiply_adds / 1e6) == multiply_adds


# The paper's multiply-adds. It says nothing of parameters; those are of the goldens.
PAPER = {
    "mobilenet-v1": (4_231_976, 567),
    "condconv-mobilenet-v1-8e": (32_826_824, 600),
    "mobilenet-v2": (3_504_872, 301),
    "condconv-mobilenet-v2-8e-wide": (27_457_768, 329),
    "mnasnet-a1": (3_887_038, 312),
    "condconv-mnasnet-a1-8e": (14_984_718, 325),
    "resnet-50": (25_557_032, 4093),
    "condconv-resnet-50-8e": (129_872_800, 4213),
}


@pytest.mark.parametrize(("name", "expected"), PAPER.items(), ids=PAPER)
def test_costs_of_the_papers_other_networks(name, expected):
    found = cost(outline(lambda: build_network(get_architecture(name))))
    parameters, millions = expected
    assert found.parameters == parameters
    assert found.multiply_adds == pytest.approx(1e6 * millions, rel=0.005)


def test_condconv_lite0_costs_about_what_lite0_costs():
    lite0, conditional = (
        cost(outline(lambda name=name: build_network(get_architecture(name))))
        for name in ("efficientnet-lite0", "efficientnet-lite0-condconv-4e")
    )
    assert round(lite0.parameters / 1e6, 2) == 4.65
    assert round(conditional.parameters / 1e6, 1) == 12.7
    assert lite0.multiply_adds < conditional.multiply_adds < 1.03 * lite0.multiply_adds


def model_of(apply, *, size=8, routed=False):
    inputs = keras.Input((size, size, 4))
    if not routed:
        return keras.Model(inputs, apply(inputs))
    routing = keras.Input((3,))
    return keras.Model([inputs, routing], apply(inputs, routing))


@pytest.mark.parametrize(
    ("apply", "parameters", "multiply_adds"),
    [
        (keras.layers.Conv2D(6, 3, padding="same", use_bias=False), 216, 64 * 216),
        (keras.layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False), 216, 16 * 216),
        (keras.layers.Conv2D(6, 1), 30, 64 * 24 + 64 * 6 // 2),  # a bias is half a multiply-add
        (keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False), 36, 64 * 36),
        (keras.layers.BatchNormalization(), 8, 0),
        (keras.layers.GlobalAveragePooling2D(), 0, 128),
        (keras.layers.Activation("swish"), 0, 128),
        (keras.layers.Activation("relu6"), 0, 0),
        (lambda x: keras.layers.Add()([x, x]), 0, 128),
        (lambda x: keras.layers.Dense(5, use_bias=False)(keras.layers.Flatten()(x)), 1280, 1280),
    ],
)
def test_static_layers(apply, parameters, multiply_adds):
    assert cost(model_of(apply)) == Cost(parameters, multiply_adds)


def test_mixing_the_experts_counts():
    conv, bias = CondConv2D(6, 3, 3, padding="same", use_bias=False), CondConv2D(6, 1, 3)
    depthwise = DepthwiseCondConv2D(3, 3, strides=2, padding="same", use_bias=False)
    assert cost(model_of(conv, routed=True)) == Cost(3 * 216, 64 * 216 + 3 * 216)
    assert cost(model_of(bias, routed=True)) == Cost(3 * 30, 64 * 24 + 3 * 30 + 64 * 6 // 2)
    assert cost(model_of(depthwise, routed=True)) == Cost(3 * 36, 16 * 36 + 3 * 36)


def test_a_dense_layer_with_experts_costs_a_product_for_each():
    def classify(x, r):
        return CondConvDense(5, 3)(keras.layers.Flatten()(x), r)

    product = 256 * 5
    mixing, bias = 3 * product + 3 * 5, 5 // 2
    assert cost(model_of(classify, routed=True)) == Cost(3 * product + 3 * 5, product + mixing + bias)


def test_models_inside_models_count():
    inner = model_of(keras.layers.Conv2D(6, 3, use_bias=False))
    assert cost(model_of(inner)) == cost(inner)


def test_every_call_of_a_layer_counts():
    def twice(x):
        conv = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
        return conv(keras.layers.MaxPooling2D()(conv(x)))

    kernel = 4 * 4 * 9
    assert cost(model_of(twice)) == Cost(kernel, 64 * kernel + 16 * kernel)
    inner = model_of(keras.layers.Conv2D(4, 3, padding="same", use_bias=False))
    assert cost(model_of(lambda x: inner(inner(x)))) == Cost(kernel, 2 * 64 * kernel)


def test_calls_in_other_models_do_not_count():
    conv = keras.layers.Conv2D(6, 3, padding="same", use_bias=False)
    assert cost(model_of(conv)) == Cost(216, 64 * 216)
    assert cost(model_of(conv, size=16)) == Cost(216, 256 * 216)


def test_a_sequence_of_layers_inside_counts():
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3, padding="same", use_bias=False)])
    assert cost(model_of(inner)) == cost(inner) == Cost(216, 64 * 216)


def test_a_class_of_its_own_inside_has_no_known_multiply_adds():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(6, 3, use_bias=False)

        def call(self, x):
            return self.conv(x)

    assert cost(model_of(Mine())) == Cost(216, None)


def test_open_size_has_no_cost():
    model = model_of(keras.layers.Conv2D(6, 3), size=None)
    with pytest.raises(ValueError, match="need a fixed input size"):
        cost(model)
