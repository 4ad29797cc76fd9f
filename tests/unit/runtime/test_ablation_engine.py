"""Ablations against plain Keras layers whose routing is replaced one block after the other."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from numpy.typing import NDArray

from condconv_serve.domain import Preprocessing, RoutingOverrides
from condconv_serve.errors import BundleError
from condconv_serve.nn import CondConv2D, DepthwiseCondConv2D
from condconv_serve.runtime.ablation_engine import AblationEngine
from condconv_serve.runtime.lowering import CPU
from condconv_serve.runtime.outputs import with_routing
from tests.unit.runtime.samples import small_efficientnet

pytestmark = pytest.mark.tensorflow

SIZE = 32
PREPROCESSING = Preprocessing(transform="pillow", image_size=SIZE)
Randomise = Callable[[Any], Any]
AssertClose = Callable[..., None]
Floats = NDArray[np.float32]
Subject = tuple[Any, AblationEngine]


def branched(randomise: Randomise) -> Any:
    """Blocks side by side, of different numbers of experts, past which features are handed on; all kinds of layers."""

    def router(x: Any, experts: int, name: str, activation: str = "sigmoid") -> Any:
        return layers.Dense(experts, activation=activation, name=name)(layers.GlobalAveragePooling2D()(x))

    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.RandomTranslation(0.2, 0.2)(layers.Rescaling(0.5)(pixels))
    stem = x = layers.LayerNormalization()(layers.Conv2D(8, 3, strides=4, padding="same")(x))
    x = layers.Add()([CondConv2D(8, 3, num_experts=2, padding="same")(x, router(x, 2, "first")), stem])
    x = layers.BatchNormalization()(x)
    left = CondConv2D(6, 1, num_experts=4)(x, router(x, 4, "left", "softmax"))
    right = DepthwiseCondConv2D(3, num_experts=3, padding="same")(x, router(x, 3, "right"))
    x = layers.Concatenate()([left, right, stem, layers.AveragePooling2D(4)(pixels)])
    logits = layers.Dense(7)(layers.Flatten()(x))
    return with_routing(randomise(keras.Model(pixels, logits)))


def detector(randomise: Randomise) -> Any:
    """Two feature maps, each with boxes and scores of its own; between them a block with experts."""

    def router(x: Any, experts: int, name: str) -> Any:
        return layers.Dense(experts, activation="sigmoid", name=name)(layers.GlobalAveragePooling2D()(x))

    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(pixels)
    x = first = CondConv2D(8, 3, num_experts=3, padding="same")(x, router(x, 3, "first_routing"))
    x = second = CondConv2D(8, 3, strides=2, num_experts=2, padding="same")(x, router(x, 2, "second_routing"))
    boxes = [layers.Reshape((-1, 4))(layers.Conv2D(4, 1)(x)) for x in (first, second)]
    scores = [layers.Reshape((-1, 3))(layers.Conv2D(3, 1, activation="sigmoid")(x)) for x in (first, second)]
    outputs = {
        "boxes": layers.Concatenate(axis=1)(boxes),
        "scores": layers.Concatenate(axis=1)(scores),
    }
    graph = keras.Model(pixels, outputs)
    routing = {name: graph.get_layer(f"{name}_routing").output for name in ("first", "second")}
    return randomise(keras.Model(pixels, {**outputs, "routing": routing}))


def reusing(randomise: Randomise, *, reuse: bool) -> Any:
    """Blocks that have an activation and a pool in common, or equal ones."""
    kept = layers.ReLU(), layers.GlobalAveragePooling2D()
    pixels = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(6, 3, strides=4)(pixels)
    for name in ("first", "second", "third"):
        activation, pool = kept if reuse else (layers.ReLU(), layers.GlobalAveragePooling2D())
        x = activation(x)
        x = CondConv2D(6, 1, num_experts=3)(x, layers.Dense(3, activation="sigmoid", name=name)(pool(x)))
    return with_routing(randomise(keras.Model(pixels, layers.Dense(4)(kept[1](x)))))


@pytest.fixture(scope="module", params=["tensorflow", "native"])
def lowering(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("native_lowering") if request.param == "native" else CPU


@pytest.fixture(scope="module")
def subject(randomise: Randomise, lowering: Any) -> Subject:
    """An EfficientNet of five blocks with experts."""
    name = "efficientnet-condconv-b0-8e"
    network = randomise(small_efficientnet(name, image_size=SIZE, depth_coefficient=0.5, num_classes=7))
    return network, AblationEngine(network, PREPROCESSING, lowering=lowering)


def plain(
    network: Any, row: NDArray[np.uint8], overrides: RoutingOverrides, output: str = "logits"
) -> tuple[Floats, Floats]:
    """All variants by plain Keras: each block's own routing follows from the routing of those before it.

    Returns the output `[V, ...]`, and the weights used `[V, blocks, experts]`, zero where a block has fewer experts
    than another.
    """
    variants, _, most = overrides.weights.shape
    pixels = np.repeat((row[None].astype(np.float32) - 127) / 128, variants, axis=0)
    tensors = list(network.output["routing"].values())
    used: list[Floats] = []
    for number, tensor in enumerate(tensors):
        own = np.asarray(keras.Model([network.input, *tensors[:number]], tensor)([pixels, *used], training=False))
        given = overrides.weights[:, number, : own.shape[1]]
        own = np.where(overrides.uniform[:, number, None], own.mean(axis=1, keepdims=True), own)
        used.append(np.where(np.isnan(given), own, given).astype(np.float32))
    model = keras.Model([network.input, *tensors], network.output[output])
    computed = np.asarray(model([pixels, *used], training=False))
    return computed, np.stack([np.pad(w, ((0, 0), (0, most - w.shape[1]))) for w in used], axis=1)


def overrides_of(*variants: dict[Any, Any], blocks: int, experts: int) -> RoutingOverrides:
    """Each variant a dict: (block, expert) to a weight, or block to "uniform"."""
    weights = np.full((len(variants), blocks, experts), np.nan, np.float32)
    uniform = np.zeros((len(variants), blocks), bool)
    for number, variant in enumerate(variants):
        for place, value in variant.items():
            if value == "uniform":
                uniform[number, place] = True
            else:
                weights[(number, *place)] = value
    return RoutingOverrides(weights, uniform)


def shape_of(network: Any) -> dict[str, int]:
    routing = list(network.output["routing"].values())
    return {"blocks": len(routing), "experts": routing[0].shape[-1]}


def some_row(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def computed(engine: AblationEngine, row: NDArray[np.uint8], overrides: RoutingOverrides) -> Any:
    """What the engine answers if nothing stops it."""
    found = engine(row, overrides)
    assert found is not None
    return found


def test_equal_plain_keras(subject: Subject, assert_close: AssertClose) -> None:
    network, engine = subject
    shape = shape_of(network)
    last = shape["blocks"] - 1
    overrides = overrides_of(
        {(0, 0): 0.0},
        {(3, 1): 0.0, (3, 2): 0.0},
        {last: "uniform"},
        {0: "uniform", (0, 1): 0.3, (4, 3): 0.7},
        {block: "uniform" for block in range(last + 1)},
        {(last, 0): 1.0, (1, 2): 0.25},
        {},
        **shape,
    )
    row = some_row()
    found = computed(engine, row, overrides)
    assert found["logits"].shape == (8, 7)
    whole = network((row[None].astype(np.float32) - 127) / 128)
    assert_close(found["logits"][0], whole["logits"][0], 1e-4)
    assert_close(found["routing"][0], np.concatenate(list(whole["routing"].values())), 1e-4)
    logits, used = plain(network, row, overrides)
    for number in range(7):
        assert_close(found["logits"][1 + number], logits[number], 1e-4)
        assert_close(found["routing"][1 + number], used[number], 1e-4)
    np.testing.assert_array_equal(found["logits"][7], found["logits"][0])


def test_a_change_reaches_later_blocks_but_no_earlier_ones(subject: Subject) -> None:
    network, engine = subject
    shape = shape_of(network)
    found = computed(engine, some_row(1), overrides_of({(3, 0): 0.0}, **shape))
    original, changed = found["routing"]
    np.testing.assert_array_equal(changed[:3], original[:3])
    np.testing.assert_array_equal(changed[3, 1:], original[3, 1:])
    assert changed[3, 0] == 0
    assert (changed[4:] != original[4:]).any(axis=1).all()


def test_the_same_alone_and_among_many(subject: Subject, assert_close: AssertClose) -> None:
    network, engine = subject
    shape = shape_of(network)
    every = [{(b, e): 0.0} for b in range(shape["blocks"]) for e in range(shape["experts"])]
    row = some_row(2)
    together = computed(engine, row, overrides_of(*every, **shape))
    for number in (0, 5, len(every) - 1):
        alone = computed(engine, row, overrides_of(every[number], **shape))
        assert_close(together["logits"][1 + number], alone["logits"][1], 1e-5)
        assert_close(together["routing"][1 + number], alone["routing"][1], 1e-5)
    reversed_order = computed(engine, row, overrides_of(*every[::-1], **shape))
    assert_close(reversed_order["logits"][:0:-1], together["logits"][1:], 1e-5)


def test_stopping(subject: Subject) -> None:
    network, engine = subject
    overrides = overrides_of(*[{(0, 0): 0.0}] * 20, **shape_of(network))
    asked = iter([False, False, True])
    assert engine(some_row(), overrides, stopped=lambda: next(asked)) is None


def test_a_static_network() -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    logits = layers.Dense(2)(layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(BundleError, match="static"):
        AblationEngine(keras.Model(inputs, {"logits": logits, "routing": {}}), PREPROCESSING)


def test_a_network_of_other_making(randomise: Randomise, lowering: Any, assert_close: AssertClose) -> None:
    network = branched(randomise)
    blocks = list(network.output["routing"])
    assert sorted(blocks) == ["first", "left", "right"]
    first, left, right = (blocks.index(name) for name in ("first", "left", "right"))
    overrides = overrides_of(
        {},
        {(first, 1): 0.0},
        {first: "uniform", (left, 3): 0.9},
        {right: "uniform", (right, 2): 0.0},
        {(left, 0): 1.0},
        {left: "uniform", (first, 0): 0.2, (right, 0): 0.0},
        blocks=3,
        experts=4,
    )
    row = some_row()
    found = computed(AblationEngine(network, PREPROCESSING, lowering=lowering), row, overrides)
    logits, used = plain(network, row, overrides)
    for number in range(len(logits)):
        assert_close(found["logits"][1 + number], logits[number], 1e-4)
        assert_close(found["routing"][1 + number], used[number], 1e-4)
    np.testing.assert_array_equal(found["logits"][1], found["logits"][0])


def test_layers_that_are_called_in_several_blocks(
    randomise: Randomise, lowering: Any, assert_close: AssertClose
) -> None:
    overrides = overrides_of({(0, 1): 0.0}, {1: "uniform"}, {(2, 0): 0.0, (1, 2): 0.5}, blocks=3, experts=3)
    row = some_row()
    found = computed(AblationEngine(reusing(randomise, reuse=True), PREPROCESSING, lowering=lowering), row, overrides)
    logits, used = plain(reusing(randomise, reuse=False), row, overrides)
    assert_close(found["logits"][1:], logits, 1e-4)
    assert_close(found["routing"][1:], used, 1e-4)


def test_routing_that_is_read_again_after_another_block(
    randomise: Randomise, lowering: Any, assert_close: AssertClose
) -> None:
    pixels = keras.Input((SIZE, SIZE, 3))
    first, second = (
        layers.Dense(3, activation="sigmoid", name=name)(layers.GlobalAveragePooling2D()(pixels))
        for name in ("first", "second")
    )
    x = CondConv2D(6, 3, num_experts=3, strides=4)(pixels, first)
    x = CondConv2D(6, 1, num_experts=3, activation="relu")(x, second)
    x = CondConv2D(6, 1, num_experts=3)(x, first)
    network = with_routing(randomise(keras.Model(pixels, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))))
    overrides = overrides_of({(0, 1): -2.0}, {1: "uniform"}, {0: "uniform", (1, 2): 0.5}, blocks=2, experts=3)
    row = some_row()
    found = computed(AblationEngine(network, PREPROCESSING, lowering=lowering), row, overrides)
    logits, used = plain(network, row, overrides)
    assert_close(found["logits"][1:], logits, 1e-4)
    assert_close(found["routing"][1:], used, 1e-4)


def test_a_detector(randomise: Randomise, lowering: Any, assert_close: AssertClose) -> None:
    network = detector(randomise)
    overrides = overrides_of({}, {(0, 1): 0.0}, {1: "uniform"}, {(0, 0): 0.2, (1, 1): 0.0}, blocks=2, experts=3)
    row = some_row()
    found = computed(AblationEngine(network, PREPROCESSING, lowering=lowering), row, overrides)
    assert found.keys() == {"boxes", "scores", "routing"}
    for name, shape in (("boxes", (80, 4)), ("scores", (80, 3))):
        values, used = plain(network, row, overrides, name)
        assert found[name].shape == (5, *shape)
        assert_close(found[name][1:], values, 1e-4)
        assert_close(found["routing"][1:], used, 1e-4)
        np.testing.assert_array_equal(found[name][1], found[name][0])
        assert (found[name][2:] != found[name][0]).any(axis=(1, 2)).all()


def test_routing_that_nothing_but_the_logits_follow_from() -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    routing = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(inputs))
    unused = layers.Dense(2, activation="sigmoid")(routing)
    model = keras.Model(inputs, {"logits": layers.Dense(2)(routing), "routing": {"unused": unused, "mine": routing}})
    row = some_row()
    overrides = overrides_of({(1, 2): 0.0}, {(0, 0): 0.0}, blocks=2, experts=3)
    found = computed(AblationEngine(model, PREPROCESSING), row, overrides)
    logits, used = plain(
        keras.Model(inputs, {"logits": model.output["logits"], "routing": {"mine": routing}}),
        row,
        RoutingOverrides(overrides.weights[:1, 1:], overrides.uniform[:1, 1:]),
    )
    np.testing.assert_allclose(found["logits"][1], logits[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["routing"][1, 1], used[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(found["logits"][2], found["logits"][0])
    assert found["routing"][2, 0, 0] == 0


def test_two_blocks_of_one_routing() -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    routing = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, {"logits": layers.Dense(2)(routing), "routing": {"one": routing, "other": routing}})
    with pytest.raises(BundleError, match="the same one"):
        AblationEngine(model, PREPROCESSING)
