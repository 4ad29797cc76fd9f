import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage import data

from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D, mix_experts
from condconv_serve.nn.experts import PerExpertInitializer

pytestmark = pytest.mark.tensorflow

BATCH, HEIGHT, WIDTH, CHANNELS = 3, 11, 14, 3
KERNEL_SIZES = [1, 3, 5, (3, 5), (5, 1)]
STEPS = [(1, 1), (1, 2), (1, (2, 1)), (2, 1), (2, 2), (2, (2, 1)), ((1, 2), 1), ((1, 2), 2), ((1, 2), (2, 1))]
# kernel_size, strides, dilation_rate, padding: all pairs of strides and dilations, each with every padding and with
# two sizes of kernels, which take turns.
GEOMETRIES = [
    (KERNEL_SIZES[(number + 2 * valid) % 5], strides, dilation_rate, "valid" if valid else "same")
    for number, (strides, dilation_rate) in enumerate(STEPS)
    for valid in (False, True)
]


def naive(x, kernels, *, strides=(1, 1), dilation_rate=(1, 1), padding="valid", depthwise=False):
    """One convolution per example, each position a sum over the patch below it, in float64."""
    kernel_size = kernels.shape[1:3]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation_rate, strict=True)]
    x = x.astype(np.float64)
    if padding == "same":
        pads = []
        for size, s, extent in zip(x.shape[1:3], strides, extents, strict=True):
            total = max((-(-size // s) - 1) * s + extent - size, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, extents, axis=(1, 2))
    patches = windows[:, :: strides[0], :: strides[1], :, :: dilation_rate[0], :: dilation_rate[1]]
    product = "bijchw,bhwcm->bijcm" if depthwise else "bijchw,bhwcf->bijf"
    outputs = np.einsum(product, patches, kernels.astype(np.float64))
    return outputs.reshape(*outputs.shape[:3], -1)


def expected(layer, x, routing):
    """What `layer` should compute, its activation excepted."""
    kernels = np.einsum("be,e...->b...", routing.astype(np.float64), np.asarray(layer.kernel, np.float64))
    geometry = {"strides": layer.strides, "dilation_rate": layer.dilation_rate, "padding": layer.padding}
    y = naive(x, kernels, depthwise=isinstance(layer, DepthwiseCondConv2D), **geometry)
    if layer.bias is not None:
        y += (routing.astype(np.float64) @ np.asarray(layer.bias, np.float64))[:, None, None, :]
    return y


def examples(num_experts, *, height=HEIGHT, width=WIDTH, channels=CHANNELS, batch=BATCH):
    rng = np.random.default_rng(num_experts)
    x = rng.standard_normal((batch, height, width, channels), np.float32)
    return x, rng.uniform(size=(batch, num_experts)).astype(np.float32)


@pytest.mark.parametrize(("kernel_size", "strides", "dilation_rate", "padding"), GEOMETRIES)
def test_condconv_equals_one_convolution_per_example(kernel_size, strides, dilation_rate, padding, assert_close):
    layer = CondConv2D(4, kernel_size, 3, strides=strides, dilation_rate=dilation_rate, padding=padding)
    x, routing = examples(3)
    assert_close(layer(x, routing), expected(layer, x, routing), 1e-5)


@pytest.mark.parametrize(("kernel_size", "strides", "dilation_rate", "padding"), GEOMETRIES)
def test_depthwise_condconv_equals_one_convolution_per_example(
    kernel_size, strides, dilation_rate, padding, assert_close
):
    layer = DepthwiseCondConv2D(kernel_size, 3, strides=strides, dilation_rate=dilation_rate, padding=padding)
    x, routing = examples(3)
    assert_close(layer(x, routing), expected(layer, x, routing), 1e-5)


@pytest.mark.parametrize("size", [(12, 12), (13, 13), (7, 16), (16, 7), (5, 5)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_odd_and_even_sizes(size, strides, padding, assert_close):
    x, routing = examples(2, height=size[0], width=size[1])
    for layer in (
        CondConv2D(2, 5, 2, strides=strides, padding=padding),
        DepthwiseCondConv2D(5, 2, strides=strides, padding=padding),
    ):
        assert_close(layer(x, routing), expected(layer, x, routing), 1e-5)


@pytest.mark.parametrize(
    ("num_experts", "use_bias", "depth_multiplier"),
    [
        (1, False, 1),
        (2, True, 1),
        (3, False, 2),
        (4, True, 2),
        (5, False, 1),
        (6, True, 1),
        (7, False, 2),
        (8, True, 2),
    ],
)
def test_experts_bias_and_depth_multiplier(num_experts, use_bias, depth_multiplier, assert_close):
    common = {"padding": "same", "use_bias": use_bias, "bias_initializer": "normal"}
    x, routing = examples(num_experts)
    for layer in (
        CondConv2D(4, 3, num_experts, **common),
        DepthwiseCondConv2D(3, num_experts, depth_multiplier=depth_multiplier, **common),
    ):
        y = layer(x, routing)
        assert (layer.bias is not None) == use_bias
        assert_close(y, expected(layer, x, routing), 1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda y: np.maximum(y, 0)),
        ("swish", lambda y: y / (1 + np.exp(-y))),
        ("sigmoid", lambda y: 1 / (1 + np.exp(-y))),
    ],
)
def test_activation_is_applied_last(name, function, assert_close):
    x, routing = examples(2)
    for layer in (
        CondConv2D(4, 3, 2, activation=name, bias_initializer="normal"),
        DepthwiseCondConv2D(3, 2, activation=name, bias_initializer="normal"),
    ):
        assert_close(layer(x, routing), function(expected(layer, x, routing)), 1e-5)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [9, 10])
def test_one_expert_at_full_weight_is_the_ordinary_layer(strides, size, assert_close):
    x, _ = examples(1, height=size, width=size)
    ones = np.ones((BATCH, 1), np.float32)
    pairs = [
        (CondConv2D(4, 3, 1, strides=strides, padding="same"), keras.layers.Conv2D(4, 3, strides, "same")),
        (
            DepthwiseCondConv2D(3, 1, strides=strides, padding="same"),
            keras.layers.DepthwiseConv2D(3, strides, "same"),
        ),
    ]
    for conditional, ordinary in pairs:
        ordinary.build(x.shape)
        y = conditional(x, ones)
        ordinary.kernel.assign(conditional.kernel[0])
        assert_close(y, ordinary(x), 1e-5)


def test_mix_experts_keeps_the_kernels_shape(assert_close):
    rng = np.random.default_rng(0)
    routing, experts = rng.uniform(size=(5, 4)), rng.normal(size=(4, 3, 3, 2, 6))
    assert_close(mix_experts(routing, experts), np.einsum("be,ehwcf->bhwcf", routing, experts), 1e-6)


@pytest.mark.parametrize(("padding", "strides"), [("same", 2), ("valid", 1)])
def test_unknown_size_and_batch(padding, strides, assert_close):
    conv = CondConv2D(4, 3, 2, strides=strides, padding=padding)
    depthwise = DepthwiseCondConv2D((3, 5), 2, dilation_rate=(2, 1), padding=padding)
    inputs, routing = keras.Input((None, None, CHANNELS)), keras.Input((2,))
    model = keras.Model([inputs, routing], [conv(inputs, routing), depthwise(inputs, routing)])
    assert model.output_shape == [(None, None, None, 4), (None, None, None, CHANNELS)]

    signature = [tf.TensorSpec((None, None, None, CHANNELS)), tf.TensorSpec((None, 2))]
    compiled = tf.function(lambda x, r: model([x, r]), input_signature=signature)
    for height, width, batch in [(11, 14, 3), (8, 7, 1)]:
        x, weights = examples(2, height=height, width=width, batch=batch)
        for y, layer in zip(compiled(x, weights), (conv, depthwise), strict=True):
            assert_close(y, expected(layer, x, weights), 1e-5)


@pytest.mark.parametrize(("kernel_size", "strides", "dilation_rate", "padding"), GEOMETRIES[::5])
def test_announced_output_shape(kernel_size, strides, dilation_rate, padding):
    common = {"strides": strides, "dilation_rate": dilation_rate, "padding": padding}
    x, routing = examples(2)
    for layer in (
        CondConv2D(4, kernel_size, 2, **common),
        DepthwiseCondConv2D(kernel_size, 2, depth_multiplier=2, **common),
    ):
        assert layer.compute_output_shape(x.shape, routing.shape) == tuple(layer(x, routing).shape)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CondConv2D(0, 3, 2), "filters must be a whole number from 1 on, not 0"),
        (lambda: CondConv2D(2.5, 3, 2), "filters must be a whole number from 1 on, not 2.5"),  # type: ignore[arg-type]
        (lambda: CondConv2D(True, 3, 2), "filters must be a whole number from 1 on, not True"),
        (lambda: CondConv2D(4, 0, 2), "kernel_size must be one or two whole numbers from 1 on, not 0"),
        (lambda: CondConv2D(4, (3, 3, 3), 2), "kernel_size must be one or two whole numbers"),  # type: ignore[arg-type]
        (lambda: DepthwiseCondConv2D((3, -1), 2), "kernel_size must be one or two whole numbers"),
        (lambda: CondConv2D(4, 3, 0), "num_experts must be a whole number from 1 on, not 0"),
        (lambda: CondConv2D(4, 3, "2"), "num_experts must be a whole number from 1 on, not '2'"),  # type: ignore[arg-type]
        (lambda: CondConv2D(4, 3, 2, strides=0), "strides must be one or two whole numbers from 1 on"),
        (lambda: CondConv2D(4, 3, 2, dilation_rate=(1, 0)), "dilation_rate must be one or two whole numbers"),
        (lambda: CondConv2D(4, 3, 2, padding="causal"), "padding must be 'valid' or 'same', not 'causal'"),
        (lambda: CondConv2D(4, 3, 2, data_format="channels_first"), "data_format must be 'channels_last'"),
        (lambda: DepthwiseCondConv2D(3, 2, depth_multiplier=0), "depth_multiplier must be a whole number from 1 on"),
    ],
)
def test_bad_arguments_say_what_is_allowed(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("inputs", "routing", "says"),
    [
        ((2, 8, 3), (2, 2), r"takes inputs \[batch, height, width, channels\], not shape \(2, 8, 3\)"),
        ((2, 8, 8, 3), (2, 3), r"takes routing_weights \[batch, 2\], not shape \(2, 3\)"),
        ((2, 8, 8, 3), (2, 1, 2), r"takes routing_weights \[batch, 2\], not shape \(2, 1, 2\)"),
        ((2, 4, 8, 3), (2, 2), r"needs at least 5 rows or columns, not 4"),
        ((2, 8, 3, 3), (2, 2), r"needs at least 5 rows or columns, not 3"),
    ],
)
def test_bad_shapes_say_what_is_allowed(inputs, routing, says):
    for layer in (CondConv2D(4, 3, 2, dilation_rate=2), DepthwiseCondConv2D(5, 2)):
        with pytest.raises(ValueError, match=says):
            layer(np.zeros(inputs, np.float32), np.zeros(routing, np.float32))


CONFIGURED = [
    CondConv2D(
        4,
        (3, 5),
        8,
        strides=(2, 1),
        padding="same",
        dilation_rate=(1, 2),
        activation="swish",
        kernel_initializer=keras.initializers.HeNormal(seed=3),
        kernel_regularizer=keras.regularizers.L2(1e-4),
        bias_constraint=keras.constraints.NonNeg(),
        name="conv",
    ),
    DepthwiseCondConv2D(5, 2, depth_multiplier=3, use_bias=False, kernel_constraint="unit_norm", trainable=False),
]


@pytest.mark.parametrize("layer", CONFIGURED, ids=["condconv", "depthwise"])
def test_config_round_trip(layer):
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again.strides == layer.strides
    assert again.activation is layer.activation
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)).get_config() == config


@pytest.fixture
def small_model():
    inputs = keras.Input((12, 12, 3))
    routing = keras.layers.Dense(4, activation="sigmoid")(keras.layers.GlobalAveragePooling2D()(inputs))
    x = CondConv2D(6, 3, 4, strides=2, padding="same", activation="relu", bias_initializer="normal")(inputs, routing)
    x = DepthwiseCondConv2D((3, 1), 4, depth_multiplier=2, bias_initializer="normal")(x, routing_weights=routing)
    return keras.Model(inputs, [x, routing])


def test_saved_model_gives_the_same_answers(small_model, tmp_path):
    x, _ = examples(4, height=12, width=12)
    small_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for again, before in zip(loaded(x), small_model(x), strict=True):
        np.testing.assert_array_equal(again, before)


def test_weights_file_restores_a_fresh_model(small_model, tmp_path):
    x, _ = examples(4, height=12, width=12)
    small_model.save_weights(tmp_path / "model.weights.h5")
    fresh = keras.models.clone_model(small_model)
    assert not np.allclose(fresh(x)[0], small_model(x)[0])
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(x)[0], small_model(x)[0])


def test_regularisers_and_constraints_act_on_the_experts():
    layer = CondConv2D(2, 3, 2, kernel_regularizer=keras.regularizers.L2(0.5), bias_constraint="non_neg")
    layer(*examples(2))
    np.testing.assert_allclose(layer.losses[0], 0.5 * np.sum(np.square(layer.kernel)), rtol=1e-5)
    assert layer.bias.constraint is layer.bias_constraint


def test_mixed_precision_computes_in_bfloat16():
    x, routing = examples(2)
    for layer in (CondConv2D(4, 3, 2, dtype="mixed_bfloat16"), DepthwiseCondConv2D(3, 2, dtype="mixed_bfloat16")):
        assert keras.backend.standardize_dtype(layer(x, routing).dtype) == "bfloat16"
        assert layer.kernel.dtype == "float32"


SHAPE = (3, 3, 16, 32)


@pytest.mark.parametrize("name", ["he_normal", "glorot_uniform", "lecun_normal", "random_normal", "orthogonal"])
def test_every_expert_is_initialised_like_a_layer_of_its_own(name):
    alone = np.asarray(keras.initializers.get(name)(SHAPE))
    layer = CondConv2D(32, 3, 8, kernel_initializer=name)
    layer.build((None, 9, 9, 16), (None, 8))
    for expert in np.asarray(layer.kernel):
        # Five standard errors of the spread over 4608 numbers; all experts together would be off by sqrt(8).
        np.testing.assert_allclose(expert.std(), alone.std(), rtol=0.07)
        assert abs(expert.mean()) < 5 * alone.std() / np.sqrt(expert.size)


@pytest.mark.parametrize(
    "make_seed", [lambda: None, lambda: 7, lambda: keras.random.SeedGenerator(7)], ids=["none", "number", "generator"]
)
def test_experts_differ(make_seed):
    experts = np.asarray(PerExpertInitializer(keras.initializers.HeNormal(seed=make_seed()))((4, *SHAPE)))
    for one, other in itertools.combinations(experts, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_a_seed_makes_the_experts_reproducible():
    first, second, other = (
        np.asarray(PerExpertInitializer(keras.initializers.HeNormal(seed=seed))((4, *SHAPE))) for seed in (7, 7, 70)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_initialisers_without_randomness():
    np.testing.assert_array_equal(PerExpertInitializer("ones")((2, 3)), np.ones((2, 3)))
    layer = CondConv2D(2, 3, 2, kernel_initializer=lambda shape, dtype=None: keras.ops.full(shape, 0.5, dtype))
    layer(*examples(2))
    np.testing.assert_array_equal(layer.kernel, np.full((2, 3, 3, CHANNELS, 2), 0.5))


def test_initialiser_config_round_trip():
    again = PerExpertInitializer.from_config(PerExpertInitializer("he_normal").get_config())
    assert isinstance(again.initializer, keras.initializers.HeNormal)


@pytest.fixture
def faces_or_not():
    """Photographs bundled with scikit-image: 100 faces, 100 other patches, `[200, 25, 25]`, in mixed order."""
    order = np.random.default_rng(0).permutation(200)
    labels = (np.arange(200) < 100).astype(np.int32)
    return data.lfw_subset().astype(np.float32)[order, :, :, None] * 2 - 1, labels[order]


@pytest.fixture
def face_classifier():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((25, 25, 1))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    routing = keras.layers.Dense(4, activation="sigmoid", name="router")(keras.layers.GlobalAveragePooling2D()(x))
    x = CondConv2D(16, 3, 4, strides=2, padding="same", activation="relu", name="conv")(x, routing)
    x = DepthwiseCondConv2D(3, 4, padding="same", activation="relu", name="depthwise")(x, routing)
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    return model


def test_fit_learns_from_photographs(face_classifier, faces_or_not):
    before = [weight.numpy() for weight in face_classifier.trainable_weights]
    history = face_classifier.fit(*faces_or_not, batch_size=20, epochs=10, verbose=0).history
    assert history["loss"][0] > 0.4
    assert history["loss"][-1] < 0.25 * history["loss"][0]
    assert history["accuracy"][-1] > 0.9
    for weight, was in zip(face_classifier.trainable_weights, before, strict=True):
        assert not np.array_equal(weight, was), weight.path


def test_gradients_reach_every_expert_and_the_router(face_classifier, faces_or_not):
    photographs, labels = faces_or_not
    with tf.GradientTape() as tape:
        loss = face_classifier.loss(labels[:20], face_classifier(photographs[:20], training=True))
    gradients = tape.gradient(loss, [weight.value for weight in face_classifier.trainable_weights])
    by_path = {w.path: np.asarray(g) for w, g in zip(face_classifier.trainable_weights, gradients, strict=True)}
    for path in ("conv/kernel", "conv/bias", "depthwise/kernel", "depthwise/bias"):
        for expert in by_path[path]:
            assert np.abs(expert).max() > 1e-5, path
    assert (np.abs(by_path["router/kernel"]).max(axis=0) > 1e-6).all()
    assert (np.abs(by_path["router/bias"]) > 1e-6).all()
