"""Compiles check_kernels.c against a library, and runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from condconv_serve.runtime.kernels import build

SOURCE = Path(__file__).with_name("check_kernels.c")


def compile_driver(compiler: build.Compiler, library: Path, folder: Path, *flags: str) -> Path:
    """The program, which finds the library wherever that is."""
    program = folder / SOURCE.stem
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-lpthread", "-lm", "-o", str(program)]
    common = ["-O2", "-std=gnu11", "-Wall", "-Werror", f"-I{build.SOURCES}"]
    compiler.run(*common, *flags, str(SOURCE), *link, within=folder)
    return program


def run_driver(command: Sequence[str], *, cases: int, threads: int = 1) -> list[str]:
    """The instruction sets that passed; AssertionError with what it printed, if one failed."""
    done = subprocess.run(
        [*command, str(cases), str(threads)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "WARNING" not in done.stdout, done.stdout[-6000:]
    print(done.stdout)
    return [line.partition(":")[0] for line in done.stdout.splitlines()]
