"""From a functional network to a function of tensors, by any lowering."""

from __future__ import annotations

import keras

from condconv_serve.domain import Preprocessing
from condconv_serve.runtime.lowering.lowered import Lowered
from condconv_serve.runtime.lowering.native import NativeLowering, lower_natively
from condconv_serve.runtime.lowering.slots import Lowering
from condconv_serve.runtime.lowering.tensorflow_calls import lower_to_tensorflow


def lower(
    model: keras.Model, lowering: Lowering | NativeLowering, *, preprocessing: Preprocessing | None = None
) -> Lowered:
    """Make a functional model a function of tensors for inference: norms folded, layers computed as `lowering` says.

    To be called outside of any graph, where weights can't be read. The model stays as it is.

    Args:
        model: with its weights.
        lowering: which operations to use.
        preprocessing: the first input are rows of pixels, whose mean and standard deviation it gives. Without it, the
            first input is what the model takes.

    Raises:
        ConfigurationError: the model is not functional.
    """
    if isinstance(lowering, NativeLowering):
        return lower_natively(model, lowering, preprocessing)
    return lower_to_tensorflow(model, lowering, preprocessing)
