"""The native kernels of ARM: compiled by Zig as for a wheel, and run by an emulator wherever that can be had."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from condconv_serve.runtime.kernels import build
from condconv_serve.runtime.kernels.build import NoCompiler, Variant
from tests.debian import need
from tests.native.driver import compile_driver, run_driver

pytestmark = pytest.mark.compiles
LIBRARIES = Path("/usr/aarch64-linux-gnu")
"""Debian's C library for ARM, for programs that are run by the emulator."""


def test_kernels_are_right_on_arm(tmp_path):
    variant = Variant(arch="aarch64", portable=True)
    try:
        compiler = build.find_compiler(variant)
    except NoCompiler:
        pytest.skip("Zig compiles for ARM, and the package ziglang is not installed; make test-neon has it")
    command: list[str] = []
    if platform.machine() != "aarch64":
        need({"qemu-aarch64": "qemu-user"}, beside=["libc6-arm64-cross"])
        if not LIBRARIES.is_dir():
            pytest.skip(f"there is no C library for ARM in {LIBRARIES}: apt-get install libc6-arm64-cross")
        command = [str(shutil.which("qemu-aarch64")), "-L", str(LIBRARIES)]
    program = compile_driver(compiler, build.build(variant), tmp_path)
    assert run_driver([*command, str(program)], cases=150, threads=2) == ["neon", "generic"]
