"""How a network's layers are computed for inference: one `Lowering` per kind of device, each in a file of its own.

All of them compute what the plain Keras layers compute; they differ in which operations the device is good at. The
package `native` plans programs of this project's own kernels, which TensorFlow hosts.
"""

from condconv_serve.runtime.lowering.cpu import CPU
from condconv_serve.runtime.lowering.lower import lower
from condconv_serve.runtime.lowering.lowered import Closeable, Lowered
from condconv_serve.runtime.lowering.native import NativeLowering
from condconv_serve.runtime.lowering.slots import ConvCall, Lowering
from condconv_serve.runtime.lowering.xla import XLA

__all__ = ["CPU", "XLA", "Closeable", "ConvCall", "Lowered", "Lowering", "NativeLowering", "lower"]
