"""Every engine on one small network, held to what `engine_suite.py` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from condconv_serve.domain import Engine, ModelInfo, Preprocessing
from tests.contract.engine_suite import AblationSuite, EngineSuite, Subject
from tests.contract.fakes import model_info
from tests.contract.tiny_family import TINY, build_tiny

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
    from condconv_serve.runtime.outputs import routing_layout

    preprocessing = Preprocessing(transform="official", image_size=SIZE, exact_decoding=exact)
    return model_info(layout=routing_layout(network), classes=TINY.num_classes, preprocessing=preprocessing)


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
