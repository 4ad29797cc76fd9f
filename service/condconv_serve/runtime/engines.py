"""Builds the engine that a plan asks for, checks its answers, and falls back to TensorFlow if allowed."""

from __future__ import annotations

import logging

import keras
import numpy as np

from condconv_serve.domain import Engine, EngineDescription, Pixels, Preprocessing, Row, Tensors
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.inference_graph import InferenceGraph, freeze
from condconv_serve.runtime.plan import EnginePlan, Precision
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far an engine's answers may be off: root mean square of the error, relative to that of the answers."""


def build_engine(
    network: keras.Model, preprocessing: Preprocessing, plan: EnginePlan, *, metrics: Metrics | None = None
) -> tuple[Engine, EngineDescription]:
    """Build the engine that computes a network, as planned.

    Args:
        network: functional, with its weights.
        preprocessing: what the network expects of its pixels.
        plan: which engine, where and how.
        metrics: counts padding rows; None if nobody does.

    Returns:
        The engine, and what it is: if another one had to take over, with the reason.

    Raises:
        ConfigurationError: the engine that was asked for can't compute this network, and no other one may take over.
    """
    if plan.device != "cpu":
        from condconv_serve.runtime.xla_engine import XlaEngine

        engine: Engine = XlaEngine(
            network,
            preprocessing,
            devices=plan.devices,
            precision=plan.precision,
            max_batch_size=plan.max_batch_size,
            metrics=metrics,
        )
        return engine, EngineDescription(
            engine="tensorflow",
            precision=plan.precision,
            device=", ".join(plan.devices),
            reason=plan.reason,
            native=plan.native_use,
        )
    graph = freeze(network, preprocessing)
    reason = plan.reason
    if plan.engine == "openvino":
        try:
            engine = _checked_openvino_engine(graph, plan, metrics)
        except Exception as error:
            reason = f"openvino can't compute this model: {error}"
            if not plan.fallback:
                raise ConfigurationError(f"{reason.rstrip('.')}; choose engine=auto or tensorflow.") from error
            logger.warning("%s; tensorflow takes over", reason.rstrip("."))
        else:
            return engine, EngineDescription(
                engine="openvino", precision=plan.precision, device="CPU", reason=reason, native=plan.native_use
            )
    engine = TensorFlowEngine(graph, precision=plan.precision, threads_per_stream=plan.threads_per_stream)
    return engine, EngineDescription(
        engine="tensorflow", precision=plan.precision, device="CPU", reason=reason, native=plan.native_use
    )


def _checked_openvino_engine(graph: InferenceGraph, plan: EnginePlan, metrics: Metrics | None) -> Engine:
    """Build an engine and compare its answers with TensorFlow's in float32.

    Raises:
        ConfigurationError: they differ by more than `TOLERANCE`; in bfloat16, also by more than twice as much as those
            of TensorFlow's own bfloat16. Some networks lose that much precision in any engine.
    """
    rows = probe_rows(graph.image_size)
    # TensorFlow computes first, so that OpenVINO's weights come to lie where TensorFlow's did.
    exact = _compute(graph, "float32", rows)
    engine = _openvino_engine(graph, plan, metrics)
    found = engine(rows)
    try:
        check_equal(found, exact, tolerance=TOLERANCE[plan.precision])
    except ConfigurationError:
        if plan.precision == "float32":
            raise
        rounded = _compute(graph, plan.precision, rows)
        check_equal(found, exact, tolerance=2 * max(difference(rounded, exact).values()))
    return engine


def _openvino_engine(graph: InferenceGraph, plan: EnginePlan, metrics: Metrics | None) -> Engine:
    from condconv_serve.runtime.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(
        graph,
        precision=plan.precision,
        streams=plan.streams,
        threads_per_stream=plan.threads_per_stream,
        max_batch_size=plan.max_batch_size,
        metrics=metrics,
    )


def _compute(graph: InferenceGraph, precision: Precision, rows: Row) -> Tensors:
    engine = TensorFlowEngine(graph, precision=precision)
    try:
        return engine(rows)
    finally:
        engine.close()


def difference(found: Tensors, expected: Tensors) -> dict[str, float]:
    """How far two answers differ: root mean square, relative to that of `expected`, by name of the output."""
    return {
        name: float(np.sqrt(np.mean((found[name] - values) ** 2) / max(float(np.mean(values**2)), 1e-12)))
        for name, values in expected.items()
        if values.size
    }


def check_equal(found: Tensors, expected: Tensors, *, tolerance: float) -> None:
    """Compare the answers of two engines.

    Raises:
        ConfigurationError: an output differs by more than `tolerance`, or is not finite.
    """
    for name, off in difference(found, expected).items():
        if not off <= tolerance:
            raise ConfigurationError(f"its {name} differ from TensorFlow's by {off:.2g}, more than {tolerance:.2g}.")


def probe_rows(image_size: int) -> Pixels:
    """Rows like no photo, but they reach every part of the network: uint8 `[3, image_size, image_size, 3]`."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, image_size)[:, None, None], noise.shape).astype(np.uint8)
    return np.stack([noise, ramp, ramp.transpose(1, 0, 2)])
