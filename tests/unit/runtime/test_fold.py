from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.fold import fold, foldable_norms

pytestmark = pytest.mark.tensorflow

Apply = Callable[[Any, Any], Any]
Randomise = Callable[[Any], Any]


def folded_names(apply: Apply) -> frozenset[str]:
    """Names of the batch norms folded in the network `apply(inputs, routing)`."""
    inputs, routing = keras.Input((8, 8, 4)), keras.Input((3,))
    model = keras.Model([inputs, routing], apply(inputs, routing))
    return frozenset(norm.name for norm in foldable_norms(ModelGraph(model)).values())


def norm(name: str = "norm", **options: Any) -> Any:
    return layers.BatchNormalization(name=name, **options)


@pytest.mark.parametrize(
    "convolve",
    [
        lambda x, r: layers.Conv2D(5, 3)(x),
        lambda x, r: layers.DepthwiseConv2D(3)(x),
        lambda x, r: CondConv2D(5, 3, 3)(x, r),
        lambda x, r: CondConv2D(5, 3, 3)(x, routing_weights=r),
        lambda x, r: DepthwiseCondConv2D(3, 3)(x, r),
    ],
)
def test_a_norm_that_alone_reads_a_convolution_is_folded(convolve: Apply) -> None:
    assert folded_names(lambda x, r: norm()(convolve(x, r))) == {"norm"}


def two_readers(x: Any, r: Any) -> Any:
    y = layers.Conv2D(5, 3)(x)
    return layers.Add()([norm()(y), layers.ReLU()(y)])


def two_norms(x: Any, r: Any) -> Any:
    y = layers.Conv2D(5, 3)(x)
    return layers.Add()([norm()(y), norm("other")(y)])


def read_by_an_operation(x: Any, r: Any) -> Any:
    y = layers.Conv2D(5, 3)(x)
    return norm()(y) + y


def read_by_an_inner_model(x: Any, r: Any) -> Any:
    y = layers.Conv2D(5, 3)(x)
    inputs = keras.Input(y.shape[1:])
    return layers.Add()([norm()(y), keras.Model(inputs, layers.ReLU()(inputs))(y)])


def also_an_output(x: Any, r: Any) -> Any:
    y = layers.Conv2D(5, 3)(x)
    return [norm()(y), y]


def convolution_called_twice(x: Any, r: Any) -> Any:
    convolve = layers.Conv2D(5, 3)
    return layers.Add()([norm()(convolve(x)), convolve(layers.ReLU()(x))])


def norm_called_twice(x: Any, r: Any) -> Any:
    shared = norm()
    return layers.Add()([shared(layers.Conv2D(4, 3, padding="same")(x)), shared(x)])


class DoubledConv2D(layers.Conv2D):
    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    "apply",
    [
        lambda x, r: norm()(x),
        lambda x, r: layers.Conv2D(5, 3)(norm()(x)),
        lambda x, r: norm()(layers.Conv2D(5, 3, activation="relu")(x)),
        lambda x, r: norm()(CondConv2D(5, 3, 3, activation="swish")(x, r)),
        lambda x, r: norm()(layers.ReLU()(layers.Conv2D(5, 3)(x))),
        lambda x, r: norm(axis=1)(layers.Conv2D(5, 3)(x)),
        lambda x, r: norm()(layers.SeparableConv2D(5, 3)(x)),
        lambda x, r: norm()(DoubledConv2D(5, 3)(x)),
        two_readers,
        two_norms,
        read_by_an_operation,
        read_by_an_inner_model,
        also_an_output,
        convolution_called_twice,
        norm_called_twice,
    ],
)
def test_other_norms_are_left_alone(apply: Apply) -> None:
    assert folded_names(apply) == set()


def test_only_the_next_norm_is_folded() -> None:
    assert folded_names(lambda x, r: norm("second")(norm("first")(layers.Conv2D(5, 3)(x)))) == {"first"}


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}])
@pytest.mark.parametrize("use_bias", [False, True])
def test_folded_weights(options: dict[str, Any], use_bias: bool, randomise: Randomise) -> None:
    inputs = keras.Input((8, 8, 4))
    model = randomise(
        keras.Model(inputs, norm(epsilon=1e-3, **options)(layers.Conv2D(5, 3, use_bias=use_bias, name="conv")(inputs)))
    )
    convolution, normalisation = model.layers[1:]
    scale = 1 / np.sqrt(np.asarray(normalisation.moving_variance) + 1e-3)
    shift = -np.asarray(normalisation.moving_mean) * scale
    if options.get("scale", True):
        scale, shift = (value * np.asarray(normalisation.gamma) for value in (scale, shift))
    if options.get("center", True):
        shift += np.asarray(normalisation.beta)
    if use_bias:
        shift += np.asarray(convolution.bias) * scale
    folded = fold(model.get_layer("conv"), foldable_norms(ModelGraph(model))["conv"])
    np.testing.assert_allclose(folded.kernel, np.asarray(convolution.kernel) * scale, rtol=1e-5)
    np.testing.assert_allclose(folded.bias, shift, rtol=1e-4, atol=1e-6)
    assert folded.kernel.dtype == folded.bias.dtype == np.float32
    assert folded.expert_bias is None


def test_every_experts_channels_are_scaled(randomise: Randomise) -> None:
    inputs, routing = keras.Input((8, 8, 4)), keras.Input((3,))
    layer = DepthwiseCondConv2D(3, 3, depth_multiplier=2, name="conv")
    model = randomise(keras.Model([inputs, routing], norm()(layer(inputs, routing))))
    normalisation = model.get_layer("norm")
    scale = np.asarray(normalisation.gamma) / np.sqrt(np.asarray(normalisation.moving_variance) + 1e-3)
    folded = fold(model.get_layer("conv"), foldable_norms(ModelGraph(model))["conv"])
    np.testing.assert_allclose(folded.kernel, np.asarray(layer.kernel) * scale.reshape(4, 2), rtol=1e-5)
    assert folded.expert_bias is not None
    np.testing.assert_allclose(folded.expert_bias, np.asarray(layer.bias) * scale, rtol=1e-5)
    shift = np.asarray(normalisation.beta) - np.asarray(normalisation.moving_mean) * scale
    np.testing.assert_allclose(folded.bias, shift, rtol=1e-4, atol=1e-6)  # the shift is not mixed by the routing
