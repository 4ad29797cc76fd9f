"""What needs a process that hasn't imported TensorFlow yet, since it is seen or set only before: one for all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.tensorflow

SCRIPT = """
import json, sys
from condconv_serve.runtime.tensorflow_import import import_tensorflow
import_tensorflow()
print("imported", file=sys.stderr)
import keras, numpy as np, tensorflow as tf
hidden = "matplotlib" not in sys.modules
import matplotlib.pyplot

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from condconv_serve.domain import Preprocessing
from condconv_serve.runtime import xla_engine
from tests.unit.runtime.samples import two_blocks
placed, traced, make = [], [], xla_engine.inference_function
def remember(*arguments):
    place, infer = tf.Variable(0.0).device[-5:], make(*arguments)
    placed.append(place)
    return lambda rows: (traced.append(place), infer(rows))[1]
xla_engine.inference_function = remember
engine = xla_engine.XlaEngine(two_blocks(image_size=64), Preprocessing(transform="official", image_size=64),
                   devices=("CPU:0", "CPU:1"), precision="float32", max_batch_size=1)
rows = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
first = engine(rows, 0)["logits"]
traced_first = list(traced)
second = engine(rows, 1)["logits"]

from condconv_serve.errors import OutOfMemory
from condconv_serve.runtime.tensorflow_engine import reporting_memory
def failure(compute):
    try:
        with reporting_memory():
            compute()
    except (OutOfMemory, tf.errors.InvalidArgumentError) as error:
        return [type(error).__name__, str(error), getattr(error, "retry_after", None)]
print(json.dumps({
    "hidden": hidden,
    "units": keras.layers.Dense(2).units,
    "placed": placed,
    "traced_first": traced_first,
    "traced": traced,
    "difference": float(np.abs(first - second).max() / np.abs(first).max()),
    "too_large": failure(lambda: tf.zeros([2**46])),
    "wrong": failure(lambda: tf.reshape(tf.zeros([3]), [2])),
}))
"""


@pytest.fixture(scope="module")
def process() -> subprocess.CompletedProcess[str]:
    # oneDNN's allocator would wait 10 seconds for memory before it fails.
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
    command = [sys.executable, "-c", SCRIPT]
    root = Path(__file__).parents[3]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def found(process: subprocess.CompletedProcess[str]) -> Any:
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def test_tensorflow_is_imported_without_a_word(process: subprocess.CompletedProcess[str]) -> None:
    assert process.stderr.startswith("imported\n")


def test_matplotlib_is_left_aside_and_can_be_imported_afterwards(found: Any) -> None:
    assert found["hidden"]
    assert found["units"] == 2


def test_streams_use_several_devices(found: Any) -> None:
    assert found["traced_first"] == ["CPU:0"]
    assert found["placed"] == found["traced"] == ["CPU:0", "CPU:1"]
    assert found["difference"] <= 1e-5


def test_an_allocation_that_fails_is_told_in_our_own_words(found: Any) -> None:
    kind, said, retry_after = found["too_large"]
    assert kind == "OutOfMemory"
    assert "out of memory" in said
    assert retry_after == 5


def test_other_errors_stay_what_they_are(found: Any) -> None:
    assert found["wrong"][0] == "InvalidArgumentError"
