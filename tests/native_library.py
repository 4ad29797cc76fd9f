"""The library of native kernels that tests load in their own process: compiled if it isn't, with all instruction sets.

Those that this CPU lacks are there, too, compiled for AVX2. They are slow, so nothing uses them that doesn't ask for
them. With SANITIZE_KERNELS=address,undefined the library is compiled with these sanitizers (`make test-sanitize`).
Processes that tests start load what the product would.
"""

from __future__ import annotations

import os
from pathlib import Path

from condconv_serve.runtime.kernels import build, library

CPUINFO = Path("/proc/cpuinfo")


def use() -> None:
    """Have this process load it. Where nothing can be compiled, it loads what is installed, if anything is."""
    sanitize = os.environ.get("SANITIZE_KERNELS", "")
    if sanitize:
        os.environ.pop("LD_PRELOAD", None)  # the sanitizers are in this process, and are not for those that it starts
    try:
        build.build()
        has_all = CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text().split()
        emulate = build.this_arch() == "x86_64" and not has_all
        library.LIBRARY = build.build(build.Variant(sanitize=sanitize, emulate=emulate))
    except build.NoCompiler:
        if sanitize:
            raise
