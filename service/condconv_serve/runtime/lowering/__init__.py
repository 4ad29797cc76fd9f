"""How a network's layers are computed for inference: one `Lowering` per kind of device, each in a file of its own.

All of them compute what the plain Keras layers compute; they differ in which operations the device is good at.
"""

from condconv_serve.runtime.lowering.cpu import CPU
from condconv_serve.runtime.lowering.rewrite import is_stateless, lower
from condconv_serve.runtime.lowering.slots import ConvCall, Lowering
from condconv_serve.runtime.lowering.xla import XLA

__all__ = ["CPU", "XLA", "ConvCall", "Lowering", "is_stateless", "lower"]
