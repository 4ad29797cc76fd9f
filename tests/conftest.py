"""What tests of several parts need. Tests that use TensorFlow import it after `condconv_serve`."""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import typer.testing

import condconv_serve  # noqa: F401
from condconv_serve.machine.memory import memory_left
from tests import native_library, slow_first, workers

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Else Typer would make all commands anew for each that a test runs, which takes longer than most of them.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]

MEMORY_OF_A_WORKER = 4 * 2**30
"""Bytes that a worker takes at most, with the servers that its tests start."""
SLOW_TO_IMPORT = ("tensorflow", "keras", "openvino", "torch")
RAY_TESTS = Path(__file__).parent / "ray"
NOT_QUICK = ("tensorflow", "slow", "training")
"""Marks of tests that `--quick` leaves out."""
MARKED_FILE = re.compile(rf"^pytestmark = pytest\.mark\.({'|'.join(NOT_QUICK)})$", re.MULTILINE)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes are called by what they are for: archives hold the time, which differs between processes."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help=f"Leave out what is marked {' or '.join(NOT_QUICK)}, and fail what imports TensorFlow all the same.",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """For `--numprocesses=auto`: one more than there are cores, if memory allows it, since tests also wait."""
    if config.option.numprocesses != "auto":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    left = memory_left()
    return cores + 1 if left is None or left >= (cores + 1) * MEMORY_OF_A_WORKER else cores


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background jobs ignore interrupts, and so would the processes that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--quick"):
        sys.meta_path.insert(0, NoTensorFlow())
    native_library.use()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out whole files, since they may import TensorFlow, or Ray, while they are collected."""
    if collection_path == RAY_TESTS and "not ray" in config.getoption("markexpr"):
        return True
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return MARKED_FILE.search(collection_path.read_text(encoding="utf-8")) is not None or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers.select(config, items)
    if hasattr(config, "workerinput"):
        slow_first.put_in_order(items)
    if not config.getoption("--quick"):
        return
    left_out = [item for item in items if any(item.get_closest_marker(mark) for mark in NOT_QUICK)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of what is made while tests are collected is garbage, and looking for some takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare the collector the objects of TensorFlow and Keras, as a server does: each look at them takes 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _calm_collector() -> Iterator[None]:
    """Spare the collector what a file of tests leaves, too: each load of a model collects, in the end for seconds."""
    yield
    gc.collect()
    gc.freeze()


class NoTensorFlow(MetaPathFinder):
    """Fails whatever imports TensorFlow, which takes seconds, in a run of quick tests."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in SLOW_TO_IMPORT:
            self._fail(name)

    def _fail(self, name: str) -> NoReturn:
        # No ImportError: code that does without an optional package would take it for a missing one.
        raise AssertionError(
            f"A quick test imports {name}. Import it where it is used, let the test use a fake of tests/contract, or "
            "mark what needs it: a file by `pytestmark = pytest.mark.tensorflow` on a line below its imports, a test "
            "by `@pytest.mark.tensorflow`."
        )


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., dict[str, np.ndarray]]:
    """Run an `InferenceGraph` on one or more batches of uint8 rows, in one session."""
    import tensorflow as tf

    def run(graph: Any, *batches: np.ndarray) -> Any:
        with tf.Graph().as_default() as imported:
            tf.import_graph_def(graph.graph_def, name="")
        with tf.compat.v1.Session(graph=imported) as session:
            outputs = {name: f"{name}:0" for name in graph.outputs}
            results = [session.run(outputs, {"rows:0": rows}) for rows in batches]
        return results[0] if len(results) == 1 else results

    return run


@pytest.fixture(scope="session")
def randomise() -> Callable[[Any], Any]:
    """Give a Keras model weights such as training leaves behind: nothing at 0 or 1, every channel different."""

    def assign(model: Any, *, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        for weight in model.weights:
            leaf = weight.path.rsplit("/", 1)[-1]
            if leaf in ("gamma", "moving_variance"):
                value = rng.uniform(0.5, 1.5, weight.shape)
            elif leaf in ("beta", "moving_mean", "bias"):
                value = rng.normal(0, 0.3, weight.shape)
            else:
                experts = len(weight.shape) in (3, 5)
                fan_in = np.prod(weight.shape[experts : -2 if "depthwise" in weight.path else -1])
                # With 2 deep random networks are chaotic and float32 loses four digits; with 1 all rows are alike.
                value = rng.normal(0, np.sqrt(1.4 / fan_in), weight.shape)
            weight.assign(value)
        return model

    return assign


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Equal up to `relative` times the largest magnitude that is expected."""

    def check(actual: Any, expected: Any, relative: float) -> None:
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape
        scale = np.abs(expected).max()
        assert scale > 0
        assert np.abs(actual - expected).max() <= relative * scale

    return check


@pytest.fixture(scope="session")
def native_lowering() -> Any:
    """The lowering to native kernels; skips where their library can't be used, and says why."""
    from condconv_serve.runtime.kernels.library import NativeUnavailable
    from condconv_serve.runtime.lowering import NativeLowering

    lowering = NativeLowering()
    try:
        lowering.kernels.isa()
    except NativeUnavailable as error:
        pytest.skip(str(error))
    return lowering
