"""Builds engines of native kernels, where these can compute a network and answer as TensorFlow does."""

from __future__ import annotations

import logging

import keras
import numpy as np
import tensorflow as tf

from condconv_serve.domain import NativeState, NativeUse, Preprocessing, RoutingOverrides, Row, Tensors
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.machine.memory import release_memory
from condconv_serve.runtime.ablation_engine import AblationEngine
from condconv_serve.runtime.answers import check_answers, compute_once, probe_rows
from condconv_serve.runtime.inference_graph import InferenceGraph, freeze, inference_function
from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.lowering import CPU, NativeLowering
from condconv_serve.runtime.plan import EnginePlan, Precision
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine

logger = logging.getLogger(__name__)


def build_native_engine(
    network: keras.Model, preprocessing: Preprocessing, plan: EnginePlan
) -> tuple[TensorFlowEngine | None, NativeUse]:
    """Build an engine that computes with native kernels what they can compute, and check its answers.

    Args:
        network: functional, with its weights.
        preprocessing: what the network expects of its pixels.
        plan: with native kernels.

    Returns:
        The engine and what native kernels compute in it; or None, and why they don't.
    """
    rows = probe_rows(preprocessing.image_size)
    state: NativeState = "failed"
    engine = None
    try:
        library.use_threads(plan.streams * plan.threads_per_stream)
        # Computed first, so that its memory is free again for the programs.
        exact = exact_answers(network, preprocessing, rows)
        release_memory()
        graph = freeze(network, preprocessing, lowering=NativeLowering(bfloat16=plan.precision == "bfloat16"))
        use = graph.native
        if use.state != "used":
            return None, use
        engine = _engine(graph, plan)
        del graph
        found = engine(rows)
        state = "differs"
        check_answers(
            found,
            exact,
            precision=plan.precision,
            rounded=lambda: compute_once(freeze(network, preprocessing), "bfloat16", rows),
        )
    except Exception as error:
        if engine is not None:
            engine.close()
        unavailable = isinstance(error, library.NativeUnavailable)
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, NativeUse(state="unavailable" if unavailable else state, reason=reason)
    return engine, use


def build_ablation(network: keras.Model, preprocessing: Preprocessing, plan: EnginePlan) -> AblationEngine:
    """Make a network ready for ablations, with native kernels if they answer as TensorFlow does.

    Raises:
        BundleError: as for `AblationEngine`.
    """
    if plan.native != "off":
        try:
            return _native_ablation(network, preprocessing)
        except BundleError:
            raise
        except Exception as error:
            logger.warning("ablations are computed without native kernels: %s", " ".join(str(error).split()))
    return AblationEngine(network, preprocessing)


def exact_answers(network: keras.Model, preprocessing: Preprocessing, rows: Row) -> Tensors:
    """What TensorFlow computes in float32, layer by layer: a graph would need several copies of all weights."""
    infer = inference_function(network, preprocessing, CPU)
    answers = infer(tf.constant(rows.astype(preprocessing.row_type)))
    return {name: np.asarray(values) for name, values in answers.items()}


def _engine(graph: InferenceGraph, plan: EnginePlan) -> TensorFlowEngine:
    # Where nothing is left to TensorFlow, nothing is left to convert to bfloat16.
    precision: Precision = plan.precision if graph.native.tensorflow_layers else "float32"
    try:
        return TensorFlowEngine(graph, precision=precision, threads_per_stream=plan.threads_per_stream)
    except BaseException:
        for resource in graph.resources:
            resource.close()
        raise


def _native_ablation(network: keras.Model, preprocessing: Preprocessing) -> AblationEngine:
    row = probe_rows(preprocessing.image_size)[:1]
    exact = exact_answers(network, preprocessing, row)
    release_memory()
    ablation = AblationEngine(network, preprocessing, lowering=NativeLowering())
    blocks = exact["routing"].shape[1:]
    found = ablation(
        row[0], RoutingOverrides(np.full((0, *blocks), np.nan, np.float32), np.zeros((0, blocks[0]), bool))
    )
    try:
        if found is None:
            raise ConfigurationError("It was stopped.")
        exact = {name: exact[name] for name in found}  # an ablation returns no features
        check_answers(found, exact, precision="float32", rounded=lambda: exact)
    except ConfigurationError:
        ablation.close()
        raise
    return ablation
