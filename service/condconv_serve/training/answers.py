"""A network's answers, computed by the engine that would serve it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from condconv_serve.domain import Preprocessing, Tensors
from condconv_serve.machine.cores import available_cores
from condconv_serve.runtime.inference_graph import freeze
from condconv_serve.runtime.tensorflow_engine import TensorFlowEngine
from condconv_serve.training.batches import Selection


def answers_of(
    network: keras.Model, preprocessing: Preprocessing, images: Selection, *, batch_size: int, names: Iterable[str]
) -> Tensors:
    """Compute the outputs of these names, `[N, ...]`, in batches."""
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for output in answers_in_batches(network, preprocessing, images, batch_size=batch_size):
        for name, found in parts.items():
            found.append(output[name])
    return {name: np.concatenate(found) for name, found in parts.items()}


def answers_in_batches(
    network: keras.Model, preprocessing: Preprocessing, images: Selection, *, batch_size: int
) -> Iterator[Tensors]:
    """Compute all outputs, `[B, ...]` of each batch."""
    engine = TensorFlowEngine(freeze(network, preprocessing), threads_per_stream=available_cores())
    try:
        for start in range(0, len(images), batch_size):
            yield engine(images[start : start + batch_size])
    finally:
        engine.close()
