"""Networks as programs of this project's own kernels, hosted in a TensorFlow graph.

The way of a network: `tensors.py` says which symbolic tensors are the same numbers, `patterns.py` which layer is which
step, `fusing.py` which steps fuse, `segments.py` which of them form a program. `assembly.py` writes a program,
`memory.py` gives its values their places, `weights.py` packs the weights, and `host.py` runs it in TensorFlow, beside
what no kernel does.
"""

from condconv_serve.runtime.lowering.native.host import NativeLowering, lower_natively
from condconv_serve.runtime.lowering.native.kernels import Kernels, NativeProgram

__all__ = ["Kernels", "NativeLowering", "NativeProgram", "lower_natively"]
