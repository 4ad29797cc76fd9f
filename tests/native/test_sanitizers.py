"""The native kernels under the compilers' sanitizers: addresses and undefined behaviour, then races of threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from condconv_serve.runtime.kernels import build
from condconv_serve.runtime.kernels.build import Compiler, NoCompiler, Variant
from tests.native.driver import compile_driver, run_driver

pytestmark = pytest.mark.compiles
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    try:
        return build.find_compiler()
    except NoCompiler as error:
        pytest.skip(str(error))


def runtime_of(compiler: Compiler, *names: str) -> str:
    """The first of these libraries that the compiler has, or skip."""
    for name in names:
        path = compiler.run(f"-print-file-name={name}", within=ROOT, output=True).strip()
        if os.path.isabs(path):
            return path
    pytest.skip(f"{compiler.version} has no {' or '.join(names)}")


def test_every_kernel_touches_only_what_is_its_own_and_does_nothing_undefined(compiler):
    arch = platform.machine()
    runtimes = [runtime_of(compiler, "libasan.so", f"libclang_rt.asan-{arch}.so")]
    if "clang" not in compiler.version:
        # Python throws no exceptions of C++, but libraries that it loads do, and the sanitizer must know how.
        runtimes += [runtime_of(compiler, "libubsan.so"), runtime_of(compiler, "libstdc++.so.6")]
    environment = os.environ | {
        "SANITIZE_KERNELS": "address,undefined",
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
    }
    tests = ["-m", "not tensorflow", "--ignore-glob=*/test_kernel_build.py", "tests/unit/runtime/native_kernels"]
    # A sanitizer ends the process, so pytest may keep nothing of what is printed until a test is over.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-v", "-rN", *tests],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200,
    )  # fmt: skip
    print(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-12_000:]
    assert " passed" in done.stdout


def test_streams_that_compute_at_once_race_for_nothing(compiler, tmp_path):
    try:
        library = build.build(Variant(sanitize="thread"))
        program = compile_driver(compiler, library, tmp_path, "-fsanitize=thread")
    except build.CompileError as error:
        if "thread" not in str(error) and "tsan" not in str(error):
            raise
        pytest.skip(f"{compiler.version} has no ThreadSanitizer")
    assert "generic" in run_driver([str(program)], cases=40, threads=3)
