from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.lowering import CPU, XLA, ConvCall, Lowering, is_stateless, lower

pytestmark = pytest.mark.tensorflow

SIZE = 15
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE)
ROWS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
NORMALISED = (ROWS.astype(np.float32) - 127) / 128
Apply = Callable[..., Any]
Randomise = Callable[[Any], Any]
Run = Callable[..., Any]
AssertClose = Callable[..., None]


def network(apply: Apply, *, size: int | None = SIZE) -> Any:
    """Someone's own network: `apply(inputs, routing)` between a router and a classifier."""
    inputs = keras.Input((size, size, 3))
    routing = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(inputs))
    features = layers.GlobalAveragePooling2D()(apply(inputs, routing))
    return keras.Model(inputs, {"logits": layers.Dense(5)(features), "routing": {"block_0": routing}})


def normalised(layer: Any) -> Apply:
    """The layer, then a batch norm, then an activation: what gets folded."""
    return lambda x, *r: layers.Activation("swish")(layers.BatchNormalization()(layer(x, *r)))


def static(layer: Any) -> Apply:
    return lambda x, r: normalised(layer)(x)


def read_twice(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    return layers.Add()([layers.BatchNormalization()(y), layers.Activation("tanh")(y)])


def read_by_an_operation(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    return layers.BatchNormalization()(y) + keras.ops.tanh(y)


def read_by_an_inner_model(x: Any, r: Any) -> Any:
    y = layers.Conv2D(4, 3)(x)
    inputs = keras.Input(y.shape[1:])
    inner = keras.Model(inputs, layers.Activation("tanh")(layers.Conv2D(4, 1)(inputs)))
    return layers.Add()([layers.BatchNormalization()(y), inner(y)])


def shared_convolution(x: Any, r: Any) -> Any:
    convolve = layers.Conv2D(4, 3)
    return layers.Add()([layers.BatchNormalization()(convolve(x)), convolve(layers.Activation("tanh")(x))])


def shared_norm(x: Any, r: Any) -> Any:
    norm = layers.BatchNormalization()
    return layers.Add()([norm(layers.Conv2D(3, 3, padding="same")(x)), norm(x)])


class DoubledConv2D(layers.Conv2D):
    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


def routing_by_keyword(x: Any, r: Any) -> Any:
    return layers.BatchNormalization()(CondConv2D(4, 3, 3)(x, routing_weights=r))


def channels_first(x: Any, r: Any) -> Any:
    x = layers.Permute((3, 1, 2))(x)
    return layers.Permute((2, 3, 1))(layers.Conv2D(4, 3, data_format="channels_first")(x))


def unknown_layers(x: Any, r: Any) -> Any:
    x = layers.SeparableConv2D(8, 3, padding="same")(layers.LayerNormalization()(x))
    x = layers.PReLU(shared_axes=(1, 2))(layers.GroupNormalization(4)(x))
    return layers.Conv2DTranspose(4, 3, strides=2)(layers.MaxPooling2D()(x))


def squeezed(convolve: Apply, *, scale_first: bool = False) -> Apply:
    """Squeeze-and-excitation, whose product may move into the kernel of the convolution that follows."""

    def apply(x: Any, r: Any) -> Any:
        x = layers.Conv2D(6, 3)(x)
        scale = layers.Conv2D(6, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        return convolve(layers.Multiply()([scale, x] if scale_first else [x, scale]), r)

    return apply


def product_read_twice(x: Any, r: Any) -> Any:
    return layers.Add()([layers.Conv2D(6, 1)(x), x])


def convolution_of_product_called_twice(x: Any, r: Any) -> Any:
    convolve = layers.Conv2D(3, 1)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Add()([convolve(layers.Multiply()([x, scale])), convolve(x)])


def product_called_twice(x: Any, r: Any) -> Any:
    multiply = layers.Multiply()
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Add()([layers.Conv2D(3, 1)(multiply([x, scale])), multiply([x, x])])


NETWORKS = {
    "conv": static(layers.Conv2D(4, 3, strides=2, padding="same")),
    "conv, dilated": static(layers.Conv2D(4, (3, 5), dilation_rate=(2, 1))),
    "conv, groups": static(layers.Conv2D(6, 3, groups=3)),
    "conv, activation before the norm": static(layers.Conv2D(4, 3, activation="relu")),
    "depthwise": static(layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)),
    "depthwise, dilated": static(layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", use_bias=False)),
    "condconv": normalised(CondConv2D(4, 1, 3, use_bias=False)),
    "condconv, bias": normalised(CondConv2D(4, (3, 5), 3, strides=2, padding="same")),
    "condconv, dilated and strided": normalised(CondConv2D(4, 3, 3, strides=2, dilation_rate=2)),
    "condconv, activation": normalised(CondConv2D(4, 3, 3, activation="relu")),
    "depthwise condconv": normalised(DepthwiseCondConv2D(5, 3, strides=2, padding="same", use_bias=False)),
    "depthwise condconv, bias": normalised(DepthwiseCondConv2D((3, 5), 3, depth_multiplier=2)),
    "depthwise condconv, 1x1": normalised(DepthwiseCondConv2D(1, 3)),
    "depthwise condconv, strides differ": normalised(DepthwiseCondConv2D(3, 3, strides=(1, 2))),
    "depthwise condconv, dilated": normalised(DepthwiseCondConv2D(3, 3, dilation_rate=(1, 2), padding="same")),
    "depthwise condconv, dilated and strided": normalised(DepthwiseCondConv2D(3, 3, strides=2, dilation_rate=2)),
    "depthwise condconv, activation": normalised(DepthwiseCondConv2D(3, 3, activation="relu6")),
    "routing by keyword": routing_by_keyword,
    "squeezed conv": squeezed(static(layers.Conv2D(4, 1))),
    "squeezed conv, scale first": squeezed(static(layers.Conv2D(4, 1, use_bias=False)), scale_first=True),
    "squeezed conv, activation": squeezed(lambda x, r: layers.Conv2D(4, 1, activation="relu")(x)),
    "squeezed conv, groups": squeezed(static(layers.Conv2D(4, 1, groups=2))),
    "squeezed conv, strided": squeezed(static(layers.Conv2D(4, 1, strides=2))),
    "squeezed conv, 3x3": squeezed(static(layers.Conv2D(4, 3))),
    "squeezed conv, larger than the map": squeezed(static(layers.Conv2D(200, 1))),
    "squeezed condconv": squeezed(normalised(CondConv2D(4, 1, 3))),
    "squeezed condconv, scale first": squeezed(normalised(CondConv2D(4, 1, 3, use_bias=False)), scale_first=True),
    "squeezed depthwise": squeezed(static(layers.DepthwiseConv2D(1))),
    "squeezed, read twice": squeezed(product_read_twice),
    "squeezed, convolution called twice": convolution_of_product_called_twice,
    "squeezed, product called twice": product_called_twice,
    "product of two maps": lambda x, r: layers.Conv2D(4, 1)(layers.Multiply()([x, layers.Conv2D(3, 1)(x)])),
    "product of three": lambda x, r: layers.Conv2D(4, 1)(layers.Multiply()([x, x, x])),
    "norm on the input": lambda x, r: layers.BatchNormalization()(x),
    "read twice": read_twice,
    "read by an operation": read_by_an_operation,
    "read by an inner model": read_by_an_inner_model,
    "shared convolution": shared_convolution,
    "shared norm": shared_norm,
    "derived convolution": static(DoubledConv2D(4, 3)),
    "channels first": channels_first,
    "unknown layers": unknown_layers,
    "dense on a map": lambda x, r: layers.Dense(6, activation="swish", use_bias=False)(x),
    "dropout and noise": lambda x, r: layers.GaussianNoise(1.0)(layers.Dropout(0.5)(x)),
}


@pytest.mark.parametrize("apply", NETWORKS.values(), ids=NETWORKS)
def test_lowered_networks_compute_what_keras_computes(
    apply: Apply, randomise: Randomise, run_graph: Run, assert_close: AssertClose
) -> None:
    model = randomise(network(apply))
    expected = model(NORMALISED, training=False)
    frozen = run_graph(freeze(model, PREPROCESSING, lowering=CPU), ROWS)
    assert_close(frozen["logits"], expected["logits"], 1e-4)
    assert_close(frozen["routing"][:, 0], expected["routing"]["block_0"], 1e-4)
    for_xla = lower(model, XLA)(NORMALISED, training=False)  # which is compiled, not frozen
    assert_close(for_xla["logits"], expected["logits"], 1e-4)
    assert_close(for_xla["routing"]["block_0"], expected["routing"]["block_0"], 1e-4)


def test_networks_of_open_size(randomise: Randomise, run_graph: Run, assert_close: AssertClose) -> None:
    def apply(x: Any, r: Any) -> Any:
        x = normalised(CondConv2D(4, 3, 3, strides=2, padding="same"))(x, r)
        return normalised(DepthwiseCondConv2D(3, 3, padding="same"))(x, r)

    model = randomise(network(apply, size=None))
    expected = model(NORMALISED)["logits"]
    assert_close(run_graph(freeze(model, PREPROCESSING, lowering=CPU), ROWS)["logits"], expected, 1e-4)
    assert_close(lower(model, XLA)(NORMALISED)["logits"], expected, 1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_xla_lowering_compiles(batch_size: int, randomise: Randomise, assert_close: AssertClose) -> None:
    def apply(x: Any, r: Any) -> Any:
        return normalised(CondConv2D(4, 1, 3))(normalised(DepthwiseCondConv2D(3, 3, strides=2))(x, r), r)

    model = randomise(network(apply))
    compiled = tf.function(lower(model, XLA), jit_compile=True, autograph=False)
    outputs = compiled(tf.constant(NORMALISED[:batch_size]))
    expected = model(NORMALISED[:batch_size])
    assert_close(outputs["logits"], expected["logits"], 1e-4)


def test_lowering_leaves_the_model_as_it_was(randomise: Randomise) -> None:
    model = randomise(network(unknown_layers))
    before, weights = np.asarray(model(NORMALISED)["logits"]), model.get_weights()
    lower(model, CPU)
    np.testing.assert_array_equal(model(NORMALISED)["logits"], before)
    for weight, was in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, was)


def test_a_device_fills_the_slots_with_operations_of_its_own(randomise: Randomise, assert_close: AssertClose) -> None:
    calls: dict[str, ConvCall] = {}

    def noted(slot: str, compute: Callable[[ConvCall], Any]) -> Callable[[ConvCall], Any]:
        def noting(call: ConvCall) -> Any:
            calls[slot] = call
            return compute(call)

        return noting

    def apply(x: Any, r: Any) -> Any:
        x = layers.DepthwiseConv2D(3)(layers.Conv2D(8, 1)(x))  # the same kernels for all: no slot
        x = CondConv2D(6, 3, 3)(x, r)  # more than a matrix product: no slot
        x = DepthwiseCondConv2D(3, 3)(x, r)
        return squeezed(normalised(CondConv2D(4, 1, 3)))(x, r)

    lowering = Lowering(
        pointwise_condconv=noted("pointwise", CPU.pointwise_condconv),
        depthwise_condconv=noted("depthwise", CPU.depthwise_condconv),
        constants=True,
        fold_scales=True,
    )
    model = randomise(network(apply))
    outputs = lower(model, lowering)(NORMALISED)
    assert_close(outputs["logits"], model(NORMALISED)["logits"], 1e-4)
    depthwise, pointwise = calls["depthwise"], calls["pointwise"]
    assert tuple(depthwise.kernel.shape) == (3, 3, 3, 6, 1)
    assert depthwise.scale is None
    assert tuple(pointwise.kernel.shape) == (3, 1, 1, 6, 4)
    assert pointwise.scale is not None
    assert tuple(pointwise.scale.shape) == (3, 1, 1, 6)
    for call in calls.values():
        assert_close(call.routing, outputs["routing"]["block_0"], 1e-6)
        assert tuple(call.bias.shape) == (3, call.layer.kernel.shape[-1] * (6 if call is depthwise else 1))


@pytest.mark.parametrize(
    ("lowering", "apply", "expected"),
    [
        (CPU, NETWORKS["condconv"], True),
        (XLA, NETWORKS["condconv"], True),
        (CPU, unknown_layers, False),
        (CPU, shared_norm, False),
    ],
    ids=["known layers", "weights that the layers hold as variables", "unknown layers", "a norm that stays"],
)
def test_what_holds_nothing_but_constants(lowering: Lowering, apply: Apply, expected: bool) -> None:
    assert is_stateless(lower(network(apply), lowering)) is expected
