"""Every engine on a small classifier and a small detector, held to what `engine_suite.py` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from condconv_serve.domain import (
    BOXES,
    FEATURES,
    LOGITS,
    ROUTING,
    SCORES,
    Engine,
    ModelInfo,
    Preprocessing,
    Row,
    Tensors,
)
from tests.contract.engine_suite import AblationSuite, EngineSuite, Subject
from tests.contract.fakes import model_info
from tests.contract.tiny_family import FAMILY, TINY, build_tiny

pytestmark = pytest.mark.tensorflow

SIZE = 32
# Every engine, and rows of either kind. What each engine does with exact rows: test_engines.py.
ENGINES = (("tensorflow", False), ("native", False), ("native", True), ("openvino", True), ("xla", False))
LIBRARIES = {"xla": "tensorflow", "native": "tensorflow"}
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def network(randomise: Callable[[Any], Any]) -> Any:
    return randomise(build_tiny(TINY, input_size=SIZE))


def info_of(network: Any, *, exact: bool = False) -> ModelInfo:
    from condconv_serve.runtime.outputs import output_specs, routing_layout

    preprocessing = Preprocessing(transform="official", image_size=SIZE, exact_decoding=exact)
    info = model_info(layout=routing_layout(network), classes=TINY.num_classes, preprocessing=preprocessing)
    return replace(info, outputs=output_specs(network))


def by_keras(network: Any, info: ModelInfo, rows: Row) -> Tensors:
    """What the layers compute, one after the other. The features are the pool's, which the classifier reads."""
    import keras

    model = keras.Model(network.inputs[0], {**network.output, "features": network.get_layer("pool").output})
    found = model((rows.astype(np.float32) - 127) / 128, training=False)
    routing = np.zeros((len(rows), *info.routing.shape), np.float32)
    for place, weights in enumerate(found["routing"].values()):
        routing[:, place, : weights.shape[-1]] = weights
    return {LOGITS: np.asarray(found["logits"]), ROUTING: routing, FEATURES: np.asarray(found["features"])[:, 0, 0]}


def make(name: str, network: Any, preprocessing: Preprocessing) -> Engine:
    from condconv_serve.runtime.inference_graph import freeze

    if name == "xla":
        from condconv_serve.runtime.xla_engine import XlaEngine

        return XlaEngine(network, preprocessing, devices=("CPU:0",), precision="float32", max_batch_size=4)
    from condconv_serve.runtime.lowering import CPU, NativeLowering

    graph = freeze(network, preprocessing, lowering=NativeLowering() if name == "native" else CPU)
    if name == "openvino":
        from condconv_serve.runtime.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(graph, precision="float32", streams=2, threads_per_stream=1, max_batch_size=4)
    from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(graph)


@pytest.fixture(scope="module", params=ENGINES, ids=str)
def engines(request: pytest.FixtureRequest, network: Any) -> Subject:
    name, exact = request.param
    if find_spec(LIBRARIES.get(name, name)) is None:
        pytest.skip(f"{name} is not installed")
    if name == "native":
        request.getfixturevalue("native_lowering")
    info = info_of(network, exact=exact)
    return Subject(info, lambda: make(name, network, info.preprocessing), ROUNDING)


class TestEngines(EngineSuite):
    @pytest.fixture
    def subject(self, engines: Subject) -> Subject:
        return engines

    def test_every_output_is_what_keras_computes(self, subject: Subject, network: Any) -> None:
        rows = subject.rows(3)
        subject.assert_equal(subject.one(rows), by_keras(network, subject.info, rows))


@pytest.fixture(scope="module")
def detector(randomise: Callable[[Any], Any]) -> Any:
    from condconv_serve.nn import build_network
    from condconv_serve.nn.families import register, unregister
    from condconv_serve.nn.ssd import detector_for

    register(FAMILY)
    try:
        small = detector_for(TINY, num_classes=3, image_size=SIZE, taps=["block_activation"], extras=[[8, 8, 2]])
        return randomise(build_network(small))
    finally:
        unregister(FAMILY)


@pytest.fixture(scope="module", params=["tensorflow", "native", "openvino"])
def detecting_engines(request: pytest.FixtureRequest, detector: Any) -> Subject:
    name = request.param
    if find_spec(name if name == "openvino" else "tensorflow") is None:
        pytest.skip(f"{name} is not installed")
    if name == "native":
        request.getfixturevalue("native_lowering")
    info = info_of(detector)
    return Subject(info, lambda: make(name, detector, info.preprocessing), ROUNDING)


class TestDetectingEngines(EngineSuite):
    @pytest.fixture
    def subject(self, detecting_engines: Subject) -> Subject:
        return detecting_engines

    def test_every_output_is_what_keras_computes(self, subject: Subject, detector: Any) -> None:
        rows = subject.rows(3)
        subject.assert_equal(subject.one(rows), detected_by_keras(detector, rows))


def test_xla_computes_a_detector(detector: Any) -> None:
    """One batch only: each size takes seconds to compile."""
    subject = Subject(info_of(detector), lambda: None, ROUNDING)
    rows = subject.rows(1)
    engine = make("xla", detector, subject.info.preprocessing)
    subject.assert_equal(engine(rows), detected_by_keras(detector, rows))
    engine.close()


def detected_by_keras(detector: Any, rows: Row) -> Tensors:
    found = detector((rows.astype(np.float32) - 127) / 128, training=False)
    routing = np.stack([np.asarray(weights) for weights in found[ROUTING].values()], axis=1)
    return {name: np.asarray(found[name]) for name in (BOXES, SCORES)} | {ROUTING: routing}


@pytest.fixture(scope="module", params=["tensorflow", "native"])
def ablations(request: pytest.FixtureRequest, network: Any) -> Subject:
    from condconv_serve.runtime.ablation_engine import AblationEngine
    from condconv_serve.runtime.lowering import CPU

    info = info_of(network)
    lowering: Any = request.getfixturevalue("native_lowering") if request.param == "native" else CPU
    return Subject(info, lambda: AblationEngine(network, info.preprocessing, lowering=lowering), ROUNDING)


class TestAblations(AblationSuite):
    @pytest.fixture
    def subject(self, ablations: Subject) -> Subject:
        return ablations

    @pytest.fixture
    def engine(self, network: Any, ablations: Subject) -> Engine:
        return make("tensorflow", network, replace(ablations.info.preprocessing))
