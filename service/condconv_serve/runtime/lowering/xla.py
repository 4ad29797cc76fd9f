"""The lowering for GPUs and TPUs, which XLA compiles: batch sizes are fixed, and one copy of the weights serves all."""

from __future__ import annotations

from condconv_serve.runtime.lowering.convolutions import pointwise_condconv, shifted_products
from condconv_serve.runtime.lowering.slots import Lowering

XLA = Lowering(
    pointwise_condconv=pointwise_condconv, depthwise_condconv=shifted_products, constants=False, fold_scales=False
)
