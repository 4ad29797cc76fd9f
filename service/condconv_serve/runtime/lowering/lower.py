"""From a functional network to a function of tensors, by any lowering."""

from __future__ import annotations

import keras

from condconv_serve.domain import Preprocessing
from condconv_serve.nn.model_graph import ModelGraph
from condconv_serve.runtime.lowering.lowered import Lowered
from condconv_serve.runtime.lowering.native import NativeLowering, lower_natively
from condconv_serve.runtime.lowering.slots import Lowering
from condconv_serve.runtime.lowering.tensorflow_calls import lower_to_tensorflow


def lower(
    model: keras.Model | ModelGraph, lowering: Lowering | NativeLowering, *, preprocessing: Preprocessing | None = None
) -> Lowered:
    """Make a functional model a function of tensors for inference: norms folded, layers computed as `lowering` says.

    To be called outside of any graph, where weights can't be read. The model stays as it is.

    Args:
        model: with its weights, or a part of one.
        lowering: which operations to use.
        preprocessing: the first input are rows of pixels, whose mean and standard deviation it gives. Without it, the
            first input is what the model takes.

    Raises:
        ConfigurationError: the model is not functional.
    """
    graph = model if isinstance(model, ModelGraph) else ModelGraph(model)
    if isinstance(lowering, NativeLowering):
        return lower_natively(graph, lowering, preprocessing)
    return lower_to_tensorflow(graph, lowering, preprocessing)
