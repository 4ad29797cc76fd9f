import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from condconv_serve.nn import CondConvDense, mixed_product

pytestmark = pytest.mark.tensorflow

BATCH, CHANNELS, UNITS = 4, 7, 5


def examples(num_experts, *, batch=BATCH):
    rng = np.random.default_rng(num_experts)
    x = rng.standard_normal((batch, CHANNELS), np.float32)
    return x, rng.uniform(size=(batch, num_experts)).astype(np.float32)


def expected(layer, x, routing):
    """One matrix per example, in float64; the activation excepted."""
    weights = routing.astype(np.float64)
    y = np.einsum("bc,be,ecu->bu", x.astype(np.float64), weights, np.asarray(layer.kernel, np.float64))
    return y if layer.bias is None else y + weights @ np.asarray(layer.bias, np.float64)


@pytest.mark.parametrize("num_experts", [1, 2, 3, 8])
@pytest.mark.parametrize("use_bias", [False, True])
def test_equals_one_matrix_per_example(num_experts, use_bias, assert_close):
    layer = CondConvDense(UNITS, num_experts, use_bias=use_bias, bias_initializer="normal")
    x, routing = examples(num_experts)
    y = layer(x, routing)
    assert (layer.bias is not None) == use_bias
    assert_close(y, expected(layer, x, routing), 1e-5)
    assert_close(np.concatenate([layer(x[i : i + 1], routing[i : i + 1]) for i in range(BATCH)]), y, 1e-6)


def test_one_expert_at_full_weight_is_the_ordinary_layer(assert_close):
    conditional, ordinary = CondConvDense(UNITS, 1, bias_initializer="normal"), keras.layers.Dense(UNITS)
    x, _ = examples(1)
    y = conditional(x, np.ones((BATCH, 1), np.float32))
    ordinary.build(x.shape)
    ordinary.set_weights([weight[0] for weight in conditional.get_weights()])
    assert_close(y, ordinary(x), 1e-6)


def test_the_activation_is_applied_last(assert_close):
    layer = CondConvDense(UNITS, 2, activation="relu", bias_initializer="normal")
    x, routing = examples(2)
    assert_close(layer(x, routing), np.maximum(expected(layer, x, routing), 0), 1e-5)


def test_makes_no_matrix_per_example():
    """The largest tensor on the way is a batch of scaled inputs."""
    compute = tf.function(mixed_product).get_concrete_function(
        tf.TensorSpec((64, CHANNELS)), tf.TensorSpec((64, 3)), tf.TensorSpec((3, CHANNELS, 1000))
    )
    shapes = {
        tuple(out.shape) for op in compute.graph.get_operations() for out in op.outputs if op.type != "Placeholder"
    }
    assert (64, 3 * CHANNELS) in shapes
    assert (64, CHANNELS, 1000) not in shapes
    assert max(np.prod(shape) for shape in shapes) == 64 * 1000


def test_gradients_reach_experts_and_router(assert_close):
    layer = CondConvDense(UNITS, 3)
    x, routing = (tf.Variable(value) for value in examples(3))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x, routing))
    to_kernel, to_routing = tape.gradient(total, [layer.kernel.value, routing])
    assert_close(to_kernel, np.einsum("bc,be->ec", x, routing)[..., None].repeat(UNITS, axis=-1), 1e-5)
    assert_close(to_routing, np.einsum("bc,ecu->be", x, np.asarray(layer.kernel)), 1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CondConvDense(0, 2), "units must be a whole number from 1 on, not 0"),
        (lambda: CondConvDense(2.5, 2), "units must be a whole number from 1 on, not 2.5"),  # type: ignore[arg-type]
        (lambda: CondConvDense(4, True), "num_experts must be a whole number from 1 on, not True"),
    ],
)
def test_bad_arguments_say_what_is_allowed(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("inputs", "routing", "says"),
    [
        ((2, 8, 8, 3), (2, 2), r"takes inputs \[batch, channels\], not shape \(2, 8, 8, 3\)"),
        ((2, 8), (2, 3), r"takes routing_weights \[batch, 2\], not shape \(2, 3\)"),
        ((2, 8), (2,), r"takes routing_weights \[batch, 2\], not shape \(2,\)"),
    ],
)
def test_bad_shapes_say_what_is_allowed(inputs, routing, says):
    with pytest.raises(ValueError, match=says):
        CondConvDense(4, 2)(np.zeros(inputs, np.float32), np.zeros(routing, np.float32))


def test_config_round_trip():
    layer = CondConvDense(
        4,
        8,
        activation="swish",
        kernel_initializer=keras.initializers.HeNormal(seed=3),
        kernel_regularizer=keras.regularizers.L2(1e-4),
        bias_constraint=keras.constraints.NonNeg(),
        name="classifier",
    )
    config = layer.get_config()
    assert CondConvDense.from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == config
    assert again.activation is layer.activation


def test_a_saved_model_gives_the_same_answers(tmp_path):
    inputs = keras.Input((CHANNELS,))
    routing = keras.layers.Dense(4, activation="sigmoid")(inputs)
    model = keras.Model(inputs, CondConvDense(UNITS, 4, bias_initializer="normal")(inputs, routing_weights=routing))
    assert model.output_shape == (None, UNITS)
    model.save(tmp_path / "model.keras")
    x, _ = examples(4)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


def test_mixed_precision_computes_in_bfloat16():
    layer = CondConvDense(4, 2, dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(layer(*examples(2)).dtype) == "bfloat16"
    assert layer.kernel.dtype == "float32"


def test_every_expert_is_initialised_like_a_layer_of_its_own():
    alone = np.asarray(keras.initializers.GlorotUniform()((200, 50)))
    layer = CondConvDense(50, 8)
    layer.build((None, 200), (None, 8))
    for expert in np.asarray(layer.kernel):
        np.testing.assert_allclose(expert.std(), alone.std(), rtol=0.05)
    for one, other in itertools.combinations(np.asarray(layer.kernel), 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1
