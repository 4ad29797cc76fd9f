from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from condconv_serve.domain import Preprocessing
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.lowering import CPU, XLA, ConvCall, Lowering, NativeLowering, lower
from condconv_serve.runtime.outputs import with_features
from tests.unit.runtime.native.interpreter import NumpyKernels
from tests.unit.runtime.networks import (
    NETWORKS,
    SIZE,
    Apply,
    network,
    normalised,
    shared_norm,
    squeezed,
    unknown_layers,
)

pytestmark = pytest.mark.tensorflow

PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE)
ROWS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
NORMALISED = (ROWS.astype(np.float32) - 127) / 128
Randomise = Callable[[Any], Any]
Run = Callable[..., Any]
AssertClose = Callable[..., None]


@pytest.mark.parametrize("apply", NETWORKS.values(), ids=NETWORKS)
def test_lowered_networks_compute_what_keras_computes(
    apply: Apply, randomise: Randomise, run_graph: Run, assert_close: AssertClose
) -> None:
    model = randomise(network(apply))
    expected = with_features(model)(NORMALISED, training=False)
    frozen = run_graph(freeze(model, PREPROCESSING, lowering=CPU), ROWS)
    assert_close(frozen["logits"], expected["logits"], 1e-4)
    assert_close(frozen["features"], expected["features"], 1e-4)
    assert_close(frozen["routing"][:, 0], expected["routing"]["block_0"], 1e-4)
    kernels = NumpyKernels()
    native = run_graph(freeze(model, PREPROCESSING, lowering=NativeLowering(kernels=kernels)), ROWS)
    assert_close(native["logits"], expected["logits"], 1e-5)
    assert_close(native["features"], expected["features"], 1e-5)
    assert_close(native["routing"][:, 0], expected["routing"]["block_0"], 1e-5)
    for_xla = lower(with_features(model), XLA)(NORMALISED)  # which is compiled, not frozen
    assert_close(for_xla["features"], expected["features"], 1e-4)
    assert_close(for_xla["logits"], expected["logits"], 1e-4)
    assert_close(for_xla["routing"]["block_0"], expected["routing"]["block_0"], 1e-4)


def test_networks_of_open_size(randomise: Randomise, run_graph: Run, assert_close: AssertClose) -> None:
    def apply(x: Any, r: Any) -> Any:
        x = normalised(CondConv2D(4, 3, 3, strides=2, padding="same"))(x, r)
        return normalised(DepthwiseCondConv2D(3, 3, padding="same"))(x, r)

    model = randomise(network(apply, size=None))
    expected = model(NORMALISED)["logits"]
    assert_close(run_graph(freeze(model, PREPROCESSING, lowering=CPU), ROWS)["logits"], expected, 1e-4)
    native = freeze(model, PREPROCESSING, lowering=NativeLowering(kernels=NumpyKernels()))
    assert native.native.state == "unsupported"
    assert_close(run_graph(native, ROWS)["logits"], expected, 1e-4)
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
    assert lower(network(apply), lowering).stateless is expected
