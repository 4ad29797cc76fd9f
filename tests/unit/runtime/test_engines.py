import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from condconv_serve.domain import FEATURES, LOGITS, ROUTING, Preprocessing, Row, Tensors
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime import engines, openvino_engine
from condconv_serve.runtime.devices import Machine
from condconv_serve.runtime.inference_graph import InferenceGraph, freeze
from condconv_serve.runtime.openvino_engine import compiled_sizes, split
from condconv_serve.runtime.outputs import with_features
from condconv_serve.runtime.plan import EngineOptions, Precision, make_plan
from condconv_serve.runtime.xla_engine import XlaEngine
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FunctionEngine
from tests.unit.runtime.samples import small_efficientnet, two_blocks

pytestmark = pytest.mark.tensorflow

PREPROCESSING = Preprocessing(transform="official", image_size=64)
MACHINE = Machine(cores=2, cpu_bfloat16=False, openvino=True)
Randomise = Callable[[Any], Any]
AssertClose = Callable[..., None]
Expected = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Rows = NDArray[np.uint8]


@pytest.fixture(scope="module")
def network(randomise: Randomise) -> Any:
    return randomise(small_efficientnet("efficientnet-condconv-b0-4e", image_size=64, num_classes=7))


@pytest.fixture(scope="module")
def small(randomise: Randomise) -> Any:
    """For what doesn't depend on the network."""
    return randomise(two_blocks(image_size=64))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return np.random.default_rng(1).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


def plain(network: Any, rows: NDArray[Any]) -> Expected:
    """What Keras computes: logits, routing and features."""
    outputs = with_features(network)((rows.astype(np.float32) - 127) / 128, training=False)
    routing = np.stack([np.asarray(r) for r in outputs["routing"].values()], axis=1)
    return np.asarray(outputs["logits"]), routing, np.asarray(outputs["features"])


def built(network: Any, **asked: Any) -> Any:
    return engines.build_engine(network, PREPROCESSING, make_plan(MACHINE, EngineOptions(**asked)))


@pytest.mark.parametrize("name", ["tensorflow", "openvino"])
def test_any_batch_size_gives_what_keras_computes(
    name: str, network: Any, rows: Rows, assert_close: AssertClose
) -> None:
    engine, description = built(network, engine=name)
    assert description.engine == name
    expected = plain(network, rows)
    for count in (1, 2, 3, 4, 7, 11):
        output = engine(rows[:count])
        assert_close(output["logits"], expected[0][:count], 1e-4)
        assert_close(output["routing"], expected[1][:count], 1e-4)
        assert_close(output["features"], expected[2][:count], 1e-4)
    engine.close()


@pytest.mark.parametrize("name", ["tensorflow", "openvino"])
def test_engines_let_go_of_the_graph_with_its_copy_of_all_weights(
    name: str, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[weakref.ref[InferenceGraph]] = []

    def freeze_and_remember(*arguments: Any, **options: Any) -> InferenceGraph:
        graph = freeze(*arguments, **options)
        frozen.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(engines, "freeze", freeze_and_remember)
    engine, _ = built(small, engine=name)
    gc.collect()
    assert [graph() for graph in frozen] == [None]
    engine.close()


EXACT = Preprocessing(transform="official", image_size=64, exact_decoding=True)


@pytest.mark.parametrize("name", ["tensorflow", "openvino", "xla"])
def test_rows_between_the_levels(name: str, small: Any, rows: Rows, assert_close: AssertClose) -> None:
    """Exact rows are floats, and overshoot; warm-up and probes send whole levels to the same engine."""
    if name == "xla":
        engine: Any = XlaEngine(small, EXACT, devices=("CPU:0",), precision="float32", max_batch_size=2)
    else:
        engine, description = engines.build_engine(small, EXACT, make_plan(MACHINE, EngineOptions(engine=name)))
        assert description.engine == name
    exact = np.random.default_rng(2).uniform(-25, 280, (3, 64, 64, 3)).astype(np.float32)
    assert_close(engine(exact)["logits"], plain(small, exact)[0], 1e-4)
    assert_close(engine(rows[:2])["logits"], plain(small, rows[:2])[0], 1e-4)
    engine.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_xla_pads_and_cuts(precision: Precision, small: Any, rows: Rows, assert_close: AssertClose) -> None:
    metrics = Metrics(CollectorRegistry())
    engine = XlaEngine(small, PREPROCESSING, devices=("CPU:0",), precision=precision, max_batch_size=4, metrics=metrics)
    output = engine(rows[:7])
    logits, _, features = plain(small, rows[:7])
    relative = 1e-4 if precision == "float32" else 5e-2
    assert_close(output["logits"], logits, relative)
    assert_close(output["features"], features, relative)
    assert output["features"].dtype == np.float32
    assert metrics.registry.get_sample_value("condconv_padding_rows_total") == 1


def ones(rows: Row, stream: int) -> Tensors:
    shapes = {LOGITS: (7,), ROUTING: (2, 3), FEATURES: (12,)}
    return {name: np.ones((len(rows), *shape), np.float32) for name, shape in shapes.items()}


def test_wrong_answers_make_tensorflow_take_over_and_say_why(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", lambda *_, **__: FunctionEngine(ones))
    _, description = built(small)
    assert description.engine == "tensorflow"
    assert "differ from TensorFlow's" in description.reason
    with pytest.raises(ConfigurationError, match="choose engine=auto or tensorflow"):
        built(small, engine="openvino")


@pytest.mark.parametrize(
    ("rows", "pieces"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 1)]),
        (3, [(3, 4)]),
        (4, [(4, 4)]),
        (5, [(4, 4), (1, 1)]),
        (6, [(6, 8)]),
        (8, [(8, 8)]),
        (9, [(8, 8), (1, 1)]),
        (20, [(8, 8), (8, 8), (4, 4)]),
    ],
)
def test_batches_are_put_together_from_a_few_sizes(rows: int, pieces: list[tuple[int, int]]) -> None:
    assert split(rows, compiled_sizes(8)) == pieces


@pytest.mark.parametrize(("most", "compiled"), [(1, (1,)), (2, (2, 1)), (4, (4, 1)), (8, (8, 4, 1)), (9, (9, 4, 1))])
def test_few_sizes_are_compiled(most: int, compiled: tuple[int, ...]) -> None:
    assert compiled_sizes(most) == compiled
