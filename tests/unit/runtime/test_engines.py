import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from condconv_serve.domain import LOGITS, ROUTING, Preprocessing
from condconv_serve.errors import ConfigurationError
from condconv_serve.nn import build_efficientnet, get_architecture
from condconv_serve.runtime import engines
from condconv_serve.runtime.devices import Machine
from condconv_serve.runtime.inference_graph import InferenceGraph
from condconv_serve.runtime.openvino_engine import compiled_sizes, split
from condconv_serve.runtime.plan import make_plan
from condconv_serve.runtime.xla_engine import XlaEngine
from condconv_serve.telemetry.metrics import Metrics

PREPROCESSING = Preprocessing(transform="official", image_size=64)
SMALL = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 64, "num_classes": 7}
MACHINE = Machine(cores=2, cpu_bfloat16=False, openvino=True)


@pytest.fixture(scope="module")
def network(randomise):
    return randomise(build_efficientnet(get_architecture("efficientnet-condconv-b0-4e", **SMALL)))


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(1).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(network, rows):
    outputs = network((rows.astype(np.float32) - 127) / 128, training=False)
    return np.asarray(outputs["logits"]), np.stack([np.asarray(r) for r in outputs["routing"].values()], axis=1)


def built(network, **asked):
    return engines.build_engine(network, PREPROCESSING, make_plan(MACHINE, **asked))


@pytest.mark.parametrize("name", ["tensorflow", "openvino"])
def test_any_batch_size_gives_what_keras_computes(name, network, rows, expected, assert_close):
    engine, description = built(network, engine=name)
    assert description.engine == name
    for count in (1, 2, 3, 4, 7, 11):
        output = engine(rows[:count])
        assert_close(output["logits"], expected[0][:count], 1e-4)
        assert_close(output["routing"], expected[1][:count], 1e-4)
    engine.close()


@pytest.mark.parametrize("name", ["tensorflow", "openvino"])
def test_engines_let_go_of_the_graph_with_its_copy_of_all_weights(name, network):
    gc.collect()
    before = sum(type(thing) is InferenceGraph for thing in gc.get_objects())
    engine, _ = built(network, engine=name)
    gc.collect()
    assert sum(type(thing) is InferenceGraph for thing in gc.get_objects()) == before
    engine.close()


EXACT = Preprocessing(transform="official", image_size=64, exact_decoding=True)


@pytest.mark.parametrize("name", ["tensorflow", "openvino", "xla"])
def test_rows_between_the_levels(name, network, rows, expected, assert_close):
    """Exact rows are floats, and overshoot; warm-up and probes send whole levels to the same engine."""
    if name == "xla":
        engine = XlaEngine(network, EXACT, devices=("CPU:0",), precision="float32", max_batch_size=2)
    else:
        engine, description = engines.build_engine(network, EXACT, make_plan(MACHINE, engine=name))
        assert description.engine == name
    exact = np.random.default_rng(2).uniform(-25, 280, (3, 64, 64, 3)).astype(np.float32)
    outputs = network((exact - 127) / 128, training=False)
    assert_close(engine(exact)["logits"], np.asarray(outputs["logits"]), 1e-4)
    assert_close(engine(rows[:2])["logits"], expected[0][:2], 1e-4)
    engine.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_xla_pads_and_cuts(precision, network, rows, expected, assert_close):
    metrics = Metrics(CollectorRegistry())
    engine = XlaEngine(
        network, PREPROCESSING, devices=("CPU:0",), precision=precision, max_batch_size=4, metrics=metrics
    )
    output = engine(rows[:7])
    assert_close(output["logits"], expected[0][:7], 1e-4 if precision == "float32" else 5e-2)
    assert metrics.registry.get_sample_value("condconv_padding_rows_total") == 1


def test_streams_use_several_devices():
    script = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from condconv_serve.domain import Preprocessing
from condconv_serve.nn import build_efficientnet, get_architecture
from condconv_serve.runtime.xla_engine import XlaEngine
small = get_architecture("efficientnet-condconv-b0-4e", **SMALL)
engine = XlaEngine(build_efficientnet(small), Preprocessing(transform="official", image_size=64),
                   devices=("CPU:0", "CPU:1"), precision="float32", max_batch_size=1)
rows = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
first, second = engine(rows, 0)["logits"], engine(rows, 1)["logits"]
assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()
functions = [function.get_concrete_function(tf.constant(rows)) for _, function in engine._devices]
where = [{variable.device[-5:] for variable in function.variables} for function in functions]
assert where == [{"CPU:0"}, {"CPU:1"}], where
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", f"SMALL = {SMALL}\n{script}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Wrong:
    def __call__(self, rows, stream=0):
        return {LOGITS: np.ones((len(rows), 7), np.float32), ROUTING: np.ones((len(rows), 4, 4), np.float32)}

    def close(self):
        pass


def test_wrong_answers_make_tensorflow_take_over_and_say_why(network, monkeypatch):
    monkeypatch.setattr(engines, "_openvino_engine", lambda *_: Wrong())
    _, description = built(network)
    assert description.engine == "tensorflow"
    assert "differ from TensorFlow's" in description.reason
    with pytest.raises(ConfigurationError, match="choose engine=auto or tensorflow"):
        built(network, engine="openvino")


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
def test_batches_are_put_together_from_a_few_sizes(rows, pieces):
    assert split(rows, compiled_sizes(8)) == pieces


@pytest.mark.parametrize(("most", "compiled"), [(1, (1,)), (2, (2, 1)), (4, (4, 1)), (8, (8, 4, 1)), (9, (9, 4, 1))])
def test_few_sizes_are_compiled(most, compiled):
    assert compiled_sizes(most) == compiled
