"""Engines of native kernels: real networks, what is given back, and what happens where the kernels can't be used."""

import gc
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from condconv_serve.domain import EngineDescription, NativeUse, Preprocessing
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import CondConv2D
from condconv_serve.runtime import engines, native_engine
from condconv_serve.runtime.devices import Machine, NativeKernels
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.kernels.library import NativeUnavailable
from condconv_serve.runtime.kernels.program import alive
from condconv_serve.runtime.lowering import NativeLowering
from condconv_serve.runtime.native_engine import build_ablation, exact_answers
from condconv_serve.runtime.plan import EngineOptions, EnginePlan, make_plan
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine
from tests.unit.runtime.native.interpreter import NumpyKernels
from tests.unit.runtime.networks import network as own_network
from tests.unit.runtime.samples import DETECTORS, DISTINCT, small_network, two_blocks

pytestmark = pytest.mark.tensorflow

SIZE = 45
PREPROCESSING = Preprocessing(transform="official", image_size=SIZE)
MACHINE = Machine(cores=2, cpu_bfloat16=False, openvino=True, native=NativeKernels(isa="avx2"))
ROWS = np.random.default_rng(1).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)
Randomise = Callable[[Any], Any]
AssertClose = Callable[..., None]


def plan_of(**options: Any) -> EnginePlan:
    return make_plan(MACHINE, EngineOptions(**options))


def built(network: Any, **options: Any) -> tuple[Any, EngineDescription]:
    return engines.build_engine(network, PREPROCESSING, plan_of(**options))


@pytest.fixture(scope="module")
def small(randomise: Randomise) -> Any:
    """For what doesn't depend on the network."""
    return randomise(two_blocks(image_size=SIZE))


@pytest.mark.parametrize("name", DISTINCT)
def test_every_architecture_at_an_odd_size(
    name: str, randomise: Randomise, assert_close: AssertClose, native_lowering: NativeLowering
) -> None:
    network = randomise(small_network(name, image_size=SIZE, num_classes=7))
    exact = exact_answers(network, PREPROCESSING, ROWS)
    engine, described = built(network)
    assert (described.native.state, described.native.tensorflow_layers) == ("used", 0)
    for count in (1, 3, 8, 11):
        found = engine(ROWS[:count])
        assert_close(found["logits"], exact["logits"][:count], 1e-5)
        assert_close(found["features"], exact["features"][:count], 1e-5)
        if exact["routing"].size:
            assert_close(found["routing"], exact["routing"][:count], 1e-5)
    engine.close()


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_one_program_and_what_follows_it(
    name: str, randomise: Randomise, assert_close: AssertClose, native_lowering: NativeLowering
) -> None:
    network = randomise(small_network(name, image_size=SIZE, num_classes=2))
    exact = exact_answers(network, PREPROCESSING, ROWS)
    graph = freeze(network, PREPROCESSING, lowering=native_lowering)
    assert [node.op for node in graph.graph_def.node].count("CondconvProgram") == 1
    engine, described = built(network)
    # Of each map two are brought into another shape; then both are joined, and become boxes and scores.
    assert (described.native.state, described.native.tensorflow_layers) == ("used", 6 * 2 + 2 + 2)
    for count in (1, 3, 11):
        found = engine(ROWS[:count])
        for name, values in exact.items():
            if values.size:
                assert_close(found[name], values[:count], 1e-5)
    engine.close()


def test_banks_and_programs_are_given_back_when_an_engine_closes(small: Any, native_lowering: NativeLowering) -> None:
    gc.collect()
    before = alive()
    engine, _ = built(small)
    banks, programs = alive()
    assert banks > before[0]
    assert programs > before[1]
    engine.close()
    assert alive() == before


def test_ablations_give_back_what_they_use(small: Any, native_lowering: NativeLowering) -> None:
    gc.collect()
    before = alive()
    ablation = build_ablation(small, PREPROCESSING, plan_of())
    assert alive() > before
    ablation.close()
    assert alive() == before


def test_what_was_made_is_given_back_if_the_engine_fails(
    small: Any, monkeypatch: pytest.MonkeyPatch, native_lowering: NativeLowering
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no session")

    gc.collect()
    before = alive()
    monkeypatch.setattr(native_engine, "TensorFlowEngine", fail)
    engine, described = built(small)
    assert described.native == NativeUse(state="failed", reason="no session")
    gc.collect()
    assert alive() == before
    engine.close()


def test_no_weight_stays_in_the_graph(small: Any, native_lowering: NativeLowering) -> None:
    graph = freeze(small, PREPROCESSING, lowering=native_lowering)
    assert {node.op for node in graph.graph_def.node} >= {"CondconvProgram"}
    constants = [node.attr["value"].tensor for node in graph.graph_def.node if node.op == "Const"]
    assert max(len(tensor.tensor_content) for tensor in constants) <= 64


def test_answers_that_differ_make_tensorflow_take_over(
    small: Any, monkeypatch: pytest.MonkeyPatch, native_lowering: NativeLowering, assert_close: AssertClose
) -> None:
    exact = exact_answers(small, PREPROCESSING, ROWS[:2])

    def wrong(*arguments: Any) -> Any:
        return {name: values + 1 for name, values in exact_answers(*arguments).items()}

    gc.collect()
    before = alive()
    monkeypatch.setattr(native_engine, "exact_answers", wrong)
    engine, described = built(small)
    assert (described.engine, described.native.state) == ("tensorflow", "differs")
    assert "differ from TensorFlow's" in described.native.reason
    assert described.native.native_layers == 0
    assert alive() == before
    assert_close(engine(ROWS[:2])["logits"], exact["logits"], 1e-5)
    engine.close()
    with pytest.raises(ConfigurationError, match=r"differ from TensorFlow's.* Choose native=auto or off\."):
        built(small, native="on")
    ablation = build_ablation(small, PREPROCESSING, plan_of())
    assert alive() == before
    ablation.close()


def test_what_is_said_of_weights_that_are_no_numbers(randomise: Randomise, native_lowering: NativeLowering) -> None:
    network = randomise(own_network(lambda x, r: layers.Conv2D(4, 3, name="broken")(x), size=SIZE))
    network.get_layer("broken").bias.assign(np.full(4, np.nan))
    engine, described = built(network)
    assert described.native.state == "differs"
    assert described.native.reason.startswith("TensorFlow's own logits aren't all finite")
    engine.close()


def test_kernels_that_can_not_be_used(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NativeUnavailable("it is of version 2")

    monkeypatch.setattr("condconv_serve.runtime.native_engine.library.use_threads", missing)
    engine, described = built(small)
    assert described.native == NativeUse(state="unavailable", reason="it is of version 2")
    engine.close()


def test_a_network_that_they_do_not_know(randomise: Randomise, native_lowering: NativeLowering) -> None:
    network = randomise(own_network(lambda x, r: layers.Conv2D(6, 3, groups=3)(x), size=SIZE))
    engine, described = built(network)
    assert described.native.state == "unsupported"
    assert "it has 3 groups" in described.native.reason
    engine.close()
    with pytest.raises(ConfigurationError, match="it has 3 groups"):
        built(network, native="on")


def test_what_they_do_not_know_is_left_to_tensorflow(
    randomise: Randomise, assert_close: AssertClose, native_lowering: NativeLowering
) -> None:
    """Layers with weights of their own in the middle, and residuals around them."""

    def apply(x: Any, r: Any) -> Any:
        first = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        x = layers.LayerNormalization()(first)
        x = layers.BatchNormalization()(CondConv2D(8, 3, 3, padding="same")(x, r))
        x = layers.Add()([x, first])
        return layers.Concatenate()([layers.MaxPooling2D()(x), layers.Conv2D(4, 2, strides=2)(x)])

    network = randomise(own_network(apply, size=SIZE))
    engine, described = built(network)
    assert described.native.state == "used"
    assert described.native.tensorflow_layers > 0
    exact = exact_answers(network, PREPROCESSING, ROWS)
    assert_close(engine(ROWS)["logits"], exact["logits"], 1e-5)
    engine.close()


def test_one_tensor_for_several_outputs(
    randomise: Randomise, assert_close: AssertClose, native_lowering: NativeLowering
) -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.DepthwiseConv2D(3)(layers.Conv2D(8, 3, strides=2)(inputs))
    mean = layers.GlobalAveragePooling2D(keepdims=True)(x)
    routing = layers.Flatten()(CondConv2D(3, 1, 2)(mean, layers.Dense(2)(layers.Flatten()(mean))))
    model = randomise(
        keras.Model(inputs, {"logits": routing, "routing": {"a": routing, "b": layers.Dropout(0.5)(routing)}})
    )
    engine = TensorFlowEngine(freeze(model, PREPROCESSING, lowering=native_lowering))
    found, exact = engine(ROWS), exact_answers(model, PREPROCESSING, ROWS)
    assert_close(found["logits"], exact["logits"], 1e-5)
    assert_close(found["routing"], exact["routing"], 1e-5)
    engine.close()


def test_in_bfloat16(small: Any, monkeypatch: pytest.MonkeyPatch, assert_close: AssertClose) -> None:
    """With what NumPy computes: not every CPU multiplies bfloat16."""
    made: list[int] = []

    def lowering(*, bfloat16: bool) -> NativeLowering:
        made.append(bfloat16)
        return NativeLowering(bfloat16=bfloat16, kernels=NumpyKernels())

    monkeypatch.setattr(native_engine, "NativeLowering", lowering)
    monkeypatch.setattr("condconv_serve.runtime.native_engine.library.use_threads", made.append)
    machine = Machine(
        cores=2, cpu_bfloat16=True, openvino=False, native=NativeKernels(isa="avx512_bf16", bfloat16=True)
    )
    engine, described = engines.build_engine(small, PREPROCESSING, make_plan(machine))
    assert made == [2, True]
    assert (described.precision, described.native.state) == ("bfloat16", "used")
    exact, found = exact_answers(small, PREPROCESSING, ROWS[:3]), engine(ROWS[:3])
    assert_close(found["logits"], exact["logits"], 3e-2)
    assert np.abs(found["logits"] - exact["logits"]).max() > 1e-5 * np.abs(exact["logits"]).max()
    engine.close()
