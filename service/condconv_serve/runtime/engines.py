"""Builds the engine that a plan asks for, checks its answers, and falls back to TensorFlow's operations if allowed."""

from __future__ import annotations

import logging

import keras

from condconv_serve.domain import Engine, EngineDescription, Preprocessing
from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.answers import check_answers, compute_once, probe_rows
from condconv_serve.runtime.inference_graph import InferenceGraph, freeze
from condconv_serve.runtime.native_engine import build_native_engine
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine
from condconv_serve.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


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
    native = plan.native_use
    if plan.native != "off":
        found, native = build_native_engine(network, preprocessing, plan)
        if found is not None:
            return found, EngineDescription(
                engine="tensorflow", precision=plan.precision, device="CPU", reason=plan.reason, native=native
            )
        if plan.native == "on":
            raise ConfigurationError(
                f"Native kernels can't compute this model: {native.reason.rstrip('.')}. Choose native=auto or off."
            )
    graph = freeze(network, preprocessing)
    reason = plan.reason if plan.native == "off" else "native kernels don't compute this model"
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
                engine="openvino", precision=plan.precision, device="CPU", reason=reason, native=native
            )
    engine = TensorFlowEngine(graph, precision=plan.precision, threads_per_stream=plan.threads_per_stream)
    return engine, EngineDescription(
        engine="tensorflow", precision=plan.precision, device="CPU", reason=reason, native=native
    )


def _checked_openvino_engine(graph: InferenceGraph, plan: EnginePlan, metrics: Metrics | None) -> Engine:
    """Build an engine and compare its answers with TensorFlow's in float32.

    Raises:
        ConfigurationError: they differ by more than `TOLERANCE`; in bfloat16, also by more than twice as much as those
            of TensorFlow's own bfloat16. Some networks lose that much precision in any engine.
    """
    rows = probe_rows(graph.image_size)
    # TensorFlow computes first, so that OpenVINO's weights come to lie where TensorFlow's did.
    exact = compute_once(graph, "float32", rows)
    engine = _openvino_engine(graph, plan, metrics)
    check_answers(engine(rows), exact, precision=plan.precision, rounded=lambda: compute_once(graph, "bfloat16", rows))
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
