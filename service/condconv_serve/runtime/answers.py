"""Compares what engines answer with what TensorFlow computes in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from condconv_serve.domain import Pixels, Row, Tensors
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.inference_graph import InferenceGraph
from condconv_serve.runtime.plan import Precision
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far an engine's answers may be off: root mean square of the error, relative to that of the answers."""


def check_answers(found: Tensors, exact: Tensors, *, precision: Precision, rounded: Callable[[], Tensors]) -> None:
    """Compare an engine's answers with exact ones.

    Args:
        found: what the engine computes.
        exact: what TensorFlow computes in float32.
        precision: of the engine.
        rounded: computes what TensorFlow answers in bfloat16. Called only if that is needed.

    Raises:
        ConfigurationError: they differ by more than `TOLERANCE`; in bfloat16, also by more than twice as much as those
            of TensorFlow's own bfloat16. Some networks lose that much precision in any engine.
    """
    try:
        check_equal(found, exact, tolerance=TOLERANCE[precision])
    except ConfigurationError:
        if precision == "float32":
            raise
        check_equal(found, exact, tolerance=2 * max(difference(rounded(), exact).values()))


def check_equal(found: Tensors, expected: Tensors, *, tolerance: float) -> None:
    """Compare the answers of two engines.

    Raises:
        ConfigurationError: an output differs by more than `tolerance`, or is not finite.
    """
    for name, values in expected.items():
        if not np.isfinite(values).all():
            raise ConfigurationError(
                f"TensorFlow's own {name} aren't all finite, so nothing can be compared with them."
            )
    for name, off in difference(found, expected).items():
        if not off <= tolerance:
            raise ConfigurationError(f"its {name} differ from TensorFlow's by {off:.2g}, more than {tolerance:.2g}.")


def difference(found: Tensors, expected: Tensors) -> dict[str, float]:
    """How far two answers differ: root mean square, relative to that of `expected`, by name of the output."""
    return {
        name: float(np.sqrt(np.mean((found[name] - values) ** 2) / max(float(np.mean(values**2)), 1e-12)))
        for name, values in expected.items()
        if values.size
    }


def compute_once(graph: InferenceGraph, precision: Precision, rows: Row) -> Tensors:
    """What TensorFlow answers, by an engine that is made for that alone."""
    engine = TensorFlowEngine(graph, precision=precision)
    try:
        return engine(rows)
    finally:
        engine.close()


def probe_rows(image_size: int) -> Pixels:
    """Rows like no photo, but they reach every part of the network: uint8 `[3, image_size, image_size, 3]`."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, image_size)[:, None, None], noise.shape).astype(np.uint8)
    return np.stack([noise, ramp, ramp.transpose(1, 0, 2)])
