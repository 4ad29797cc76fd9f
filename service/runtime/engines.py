"""Builds the engine that a plan asks for, checks its answers, and falls back where that is allowed."""

from __future__ import annotations

import logging

import keras
import numpy as np

from service.domain import Engine, EngineDescription, Pixels, Preprocessing
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.runtime.inference_graph import InferenceGraph, freeze
from service.runtime.plan import EnginePlan, Precision
from service.runtime.tensorflow_engine import TensorFlowEngine

logger = logging.getLogger(__name__)

# Of the largest logit. In bfloat16, whose numbers have 8 bits, engines that round at other places drift apart by
# about one part in a hundred over the depth of the network.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 5e-2}


def build_engine(
    network: keras.Model, preprocessing: Preprocessing, plan: EnginePlan, *, metrics: Metrics | None = None
) -> tuple[Engine, EngineDescription]:
    """Make an engine of a network.

    Args:
        network: with its weights.
        preprocessing: of its photos.
        plan: what to build.
        metrics: counts padding rows.

    Raises:
        ConfigurationError: the engine that was asked for can't compute this network, and no other one may take over.
    """
    if plan.device != "cpu":
        from service.runtime.xla_engine import XlaEngine

        engine: Engine = XlaEngine(
            network,
            preprocessing,
            devices=plan.devices,
            precision=plan.precision,
            max_batch_size=plan.max_batch_size,
            metrics=metrics,
        )
        return engine, EngineDescription(engine="tensorflow", precision=plan.precision, device=", ".join(plan.devices))
    graph = freeze(network, preprocessing)
    tensorflow_engine = TensorFlowEngine(graph, precision=plan.precision, threads_per_stream=plan.threads_per_stream)
    reason = None
    if plan.engine == "openvino":
        try:
            engine = _openvino_engine(graph, plan, metrics)
            check_equal(engine, tensorflow_engine, image_size=preprocessing.image_size, precision=plan.precision)
        except Exception as error:
            reason = f"openvino can't compute this model: {error}"
            if not plan.fallback:
                raise ConfigurationError(f"{reason.rstrip('.')}; choose engine=auto or tensorflow.") from error
            logger.warning("%s; tensorflow takes over", reason.rstrip("."))
        else:
            tensorflow_engine.close()
            return engine, EngineDescription(engine="openvino", precision=plan.precision, device="CPU")
    return tensorflow_engine, EngineDescription(
        engine="tensorflow", precision=plan.precision, device="CPU", reason=reason
    )


def _openvino_engine(graph: InferenceGraph, plan: EnginePlan, metrics: Metrics | None) -> Engine:
    from service.runtime.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(
        graph,
        precision=plan.precision,
        streams=plan.streams,
        threads_per_stream=plan.threads_per_stream,
        max_batch_size=plan.max_batch_size,
        metrics=metrics,
    )


def check_equal(engine: Engine, reference: Engine, *, image_size: int, precision: Precision) -> None:
    """Compare two engines on a batch of noise and gradients.

    Raises:
        ConfigurationError: logits or routing weights differ by more than the precision explains.
    """
    rows = probe_rows(image_size)
    found, expected = engine(rows), reference(rows)
    for name, a, b in (
        ("logits", found.logits, expected.logits),
        ("routing weights", found.routing, expected.routing),
    ):
        if b.size == 0:
            continue
        difference = float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-6))
        if not difference <= TOLERANCE[precision]:
            raise ConfigurationError(
                f"its {name} differ from TensorFlow's by {difference:.2g} of the largest, more than "
                f"{TOLERANCE[precision]:g}."
            )


def probe_rows(image_size: int) -> Pixels:
    """Three rows that resemble no photo but reach every part of the network: uint8 `[3, image_size, image_size, 3]`."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, image_size)[:, None, None], noise.shape).astype(np.uint8)
    return np.stack([noise, ramp, ramp.transpose(1, 0, 2)])
