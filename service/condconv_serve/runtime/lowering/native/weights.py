"""A convolution's weights as a bank takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from condconv_serve.runtime.fold import norm_factors
from condconv_serve.runtime.kernels.program import BankOptions, BankType, ValueType
from condconv_serve.runtime.lowering.lowered import Closeable
from condconv_serve.runtime.lowering.native.kernels import Kernels
from condconv_serve.runtime.lowering.native.nodes import Convolution


def pack(convolution: Convolution, kernels: Kernels, *, products: ValueType) -> Closeable:
    """Pack the weights of a convolution and its norm.

    A norm's scale stays out of the kernels, so that experts that were stored as half floats can be held as such. Only
    depthwise kernels take it with them.

    Args:
        convolution: of a network with its weights.
        kernels: what computes.
        products: whether it multiplies float32 or bfloat16. A depthwise convolution multiplies float32 in any case.
    """
    out_channels = convolution.out_size[2]
    factor, bias = np.ones(out_channels), np.zeros(out_channels)
    if convolution.norm is not None:
        factor, bias = norm_factors(convolution.norm)
    experts = _experts(convolution)
    expert_bias = None
    own_bias = getattr(convolution.layer, "bias", None)
    if own_bias is not None and convolution.experts is not None:
        expert_bias = np.asarray(own_bias, np.float32)
    elif own_bias is not None:
        bias = bias + np.asarray(own_bias, np.float64) * factor
    if convolution.depthwise:
        experts = experts * factor.astype(np.float32)
        expert_bias = None if expert_bias is None else expert_bias * factor.astype(np.float32)
    return kernels.bank(
        experts,
        BankOptions(
            mixed=convolution.experts is not None,
            type=_bank_type(convolution, experts, products),
            strides=convolution.strides,
            dilations=convolution.dilations,
        ),
        factor=None if convolution.depthwise or convolution.norm is None else factor.astype(np.float32),
        bias=bias.astype(np.float32),
        expert_bias=expert_bias,
    )


def _experts(convolution: Convolution) -> NDArray[np.float32]:
    """`[num_experts, height, width, in_channels, out_channels]`, without `in_channels` if depthwise."""
    channels = convolution.out_size[2]
    if convolution.layer is None:
        return np.ones((1, 1, 1, channels), np.float32)
    shape = (convolution.experts or 1, *convolution.kernel, *([] if convolution.depthwise else [convolution.size[2]]))
    return np.asarray(convolution.layer.kernel, np.float32).reshape(*shape, channels)


def _bank_type(convolution: Convolution, experts: NDArray[Any], products: ValueType) -> BankType:
    if convolution.depthwise:
        return BankType.FLOAT32
    if products is ValueType.BFLOAT16:
        return BankType.BFLOAT16
    # Half the memory to stream, where it loses nothing: most checkpoints of half floats.
    lossless = convolution.experts is not None and all(_is_half(expert) for expert in experts)
    return BankType.FLOAT16 if lossless else BankType.FLOAT32


def _is_half(numbers: NDArray[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(numbers.astype(np.float16).astype(np.float32), numbers))
