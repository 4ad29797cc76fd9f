"""The roofline: what a core of this machine does at most, in floating-point operations per second of processor time.

`python peak.py` prints it by instruction set. `share` puts a measurement in relation to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import report

from condconv_serve.runtime.kernels.build import LIBRARIES, NoCompiler, find_compiler

SOURCE = Path(__file__).with_suffix(".c")
BEST = {"f32": ("avx512", "avx2", "neon"), "bf16": ("avx512_bf16",)}
"""The instruction sets that compute a precision, the best first. AMX, which would be faster still, is left out."""


def peak(seconds: float = 1.0) -> dict[str, float]:
    """Operations per second of a core while all are busy, by instruction set; empty if there is no C compiler."""
    try:
        compiler = find_compiler()
    except NoCompiler as error:
        print(f"no roofline: {error}", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "peak"
        compiler.run("-O2", str(SOURCE), "-o", str(program), *LIBRARIES, within=Path(directory))
        threads = str(len(os.sched_getaffinity(0)))
        found = subprocess.run([program, threads, str(seconds)], capture_output=True, text=True, check=True)
    return {name: float(rate) for name, rate in (line.split() for line in found.stdout.splitlines())}


def best(peaks: dict[str, float], precision: str, isa: str | None = None) -> float | None:
    """The peak in a precision, or that of an instruction set; None if it wasn't measured."""
    return next((peaks[name] for name in ([isa] if isa else BEST[precision]) if name in peaks), None)


def share(multiply_adds: int, cpu_per_row: float, peak: float) -> float:
    """How much of the peak a network reaches that takes so many seconds of processor time per row."""
    return 2 * multiply_adds / cpu_per_row / peak


if __name__ == "__main__":
    rows = [[name, f"{rate / 1e9:.1f}"] for name, rate in peak().items()]
    print(report.table(["instruction set", "GFLOP/s per core"], rows))
