"""Compiling the native kernels: what is compiled how, when, and what happens where it can't be."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from condconv_serve.runtime.kernels import build
from condconv_serve.runtime.kernels.build import CompileError, NoCompiler, Variant

FAKE = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *--version*) echo "fakecc 1.0"; exit ;;
    *{refused}*) echo "fakecc: no such option: {refused}" >&2; exit 1 ;;
esac
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo compiled > "$2"; fi
    shift
done
"""


@pytest.fixture(autouse=True)
def sources(tmp_path, monkeypatch):
    """Two sources: one that is compiled per instruction set, one that isn't."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "number.h").write_text("#define NUMBER 7\n")
    (folder / "isa.c").write_text("int isa_is_compiled;\n")
    (folder / "dispatch.c").write_text(
        '#include "number.h"\n__attribute__((visibility("default"))) int number(void) { return NUMBER; }\n'
    )
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "WORK", folder / "build")
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "libcondconv.so")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("CC", raising=False)
    return folder


class FakeCompiler:
    """A compiler that writes down what it is asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._script, self._log = folder / "fakecc", folder / "fakecc.log"
        self.compiler = build.Compiler((str(self._script),), "fakecc 1.0")
        self.refuse("nothing")
        monkeypatch.setenv("CC", str(self._script))

    def refuse(self, option: str) -> None:
        self._script.write_text(FAKE.format(log=self._log, refused=option))
        self._script.chmod(0o755)

    def compiled(self, source: str) -> list[list[str]]:
        """The flags of each time that it compiled this source."""
        calls = [line.split() for line in self._log.read_text().splitlines()]
        return [call for call in calls if source in call and "-c" in call]

    @property
    def links(self) -> int:
        return self._log.read_text().count("libcondconv.so")


@pytest.fixture
def fakecc(tmp_path, monkeypatch):
    return FakeCompiler(tmp_path, monkeypatch)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)


@pytest.mark.skipif(not shutil.which("cc") or platform.machine() != "x86_64", reason="there is no C compiler")
def test_a_real_compiler_makes_a_library_that_loads_and_makes_it_anew_when_a_header_changes(sources, capsys):
    # One kernel for all sets would be defined five times.
    (sources / "isa.c").unlink()
    assert ctypes.CDLL(str(build.build())).number() == 7
    assert "Compiled libcondconv.so in " in capsys.readouterr().out
    made = build.LIBRARY.stat().st_mtime_ns

    assert build.build() == build.LIBRARY
    assert capsys.readouterr().out == ""
    assert build.LIBRARY.stat().st_mtime_ns == made

    (sources / "number.h").write_text("#define NUMBER 8\n")
    copy = build.LIBRARY.with_name("changed.so")
    shutil.copy(build.build(), copy)
    assert ctypes.CDLL(str(copy)).number() == 8


def test_kernels_are_compiled_for_each_instruction_set_and_the_rest_once(fakecc):
    build.build()
    per_set = {flag for call in fakecc.compiled("isa.c") for flag in call if flag.startswith("-DCC_")}
    assert per_set == {
        "-DCC_ISA_GENERIC",
        "-DCC_ISA_AVX2",
        "-DCC_ISA_AVX512",
        "-DCC_ISA_AVX512_BF16",
        "-DCC_ISA_AMX_BF16",
    }
    assert len(fakecc.compiled("isa.c")) == 5
    (once,) = fakecc.compiled("dispatch.c")
    assert not [flag for flag in once if flag.startswith(("-m", "-DCC_"))]
    (generic,) = [call for call in fakecc.compiled("isa.c") if "-DCC_ISA_GENERIC" in call]
    assert not [flag for flag in generic if flag.startswith("-m")]
    (widest,) = [call for call in fakecc.compiled("isa.c") if "-DCC_ISA_AVX512_BF16" in call]
    assert {"-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bf16", "-O3", "-fvisibility=hidden"} <= set(widest)


def test_arm_has_neon(fakecc, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    build.build()
    defined = sorted(flag for call in fakecc.compiled("isa.c") for flag in call if flag.startswith("-D"))
    assert defined == ["-DCC_ISA_GENERIC", "-DCC_ISA_NEON"]


def test_emulated_sets_need_no_more_than_avx2(fakecc):
    library = build.build(Variant(emulate=True))
    assert library != build.LIBRARY
    assert not build.LIBRARY.exists()
    emulated = [call for call in fakecc.compiled("isa.c") if "-DCC_EMULATE" in call]
    assert sorted(flag for call in emulated for flag in call if flag.startswith("-DCC_ISA")) == [
        "-DCC_ISA_AMX_BF16",
        "-DCC_ISA_AVX512",
        "-DCC_ISA_AVX512_BF16",
    ]
    assert {flag for call in emulated for flag in call if flag.startswith("-m")} == {"-mavx2", "-mfma", "-mf16c"}
    (once,) = fakecc.compiled("dispatch.c")
    assert "-DCC_EMULATE" in once


def test_what_two_libraries_have_in_common_is_compiled_once(fakecc):
    build.build()
    before = len(fakecc.compiled("isa.c"))
    build.build(Variant(emulate=True))
    assert len(fakecc.compiled("isa.c")) - before == 3


def test_sanitized_libraries_are_apart_and_keep_their_symbols(fakecc):
    library = build.build(Variant(sanitize="address,undefined"))
    assert library.parent.name == "x86_64-address-undefined"
    assert all("-fsanitize=address,undefined" in call for call in fakecc.compiled("isa.c"))


def test_a_set_that_the_compiler_does_not_know_is_left_out_and_named(fakecc, capsys):
    fakecc.refuse("-mavx512bf16")
    build.build()
    assert len(fakecc.compiled("isa.c")) == 3
    (once,) = fakecc.compiled("dispatch.c")
    assert "-DCC_WITHOUT_AVX512_BF16" in once
    assert "fakecc 1.0 can't compile for avx512_bf16" in capsys.readouterr().err


def test_only_what_changed_is_compiled_again(sources, fakecc):
    build.build()
    (sources / "dispatch.c").write_text("int changed;\n")
    build.build()
    assert len(fakecc.compiled("dispatch.c")) == 2
    assert len(fakecc.compiled("isa.c")) == 5


def test_another_compiler_compiles_everything_again(fakecc, monkeypatch):
    build.build()
    assert build.is_current()
    monkeypatch.setenv("CC", f"{os.environ['CC']} -some-flag")
    assert not build.is_current()
    build.build()
    assert len(fakecc.compiled("isa.c")) == 10


def test_what_is_current_needs_no_compiler(no_compiler, fakecc, monkeypatch):
    monkeypatch.delenv("CC")
    build.build(compiler=fakecc.compiler)
    assert build.build() == build.LIBRARY


def test_many_at_once_compile_once(fakecc):
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(lambda _: build.build(), range(4)))
    assert set(libraries) == {build.LIBRARY}
    assert fakecc.links == 1


def test_an_error_leaves_the_old_library_and_is_the_compilers_own(sources, fakecc):
    build.build()
    (sources / "dispatch.c").write_text("int changed;\n")
    fakecc.refuse("dispatch.c")
    with pytest.raises(CompileError, match="no such option"):
        build.build()
    assert build.LIBRARY.exists()
    assert not build.is_current()
    assert not list(build.LIBRARY.parent.glob(".new*"))


def test_a_compiler_that_is_asked_for_must_work(monkeypatch):
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.raises(NoCompiler, match="CC is '/no/such/compiler', which compiles nothing"):
        build.build()


@pytest.mark.parametrize(("optional", "code"), [((), 1), (("--optional",), 0)])
def test_without_a_compiler_the_command_says_so_in_a_line(no_compiler, capsys, optional, code):
    assert build.main([*optional]) == code
    said = capsys.readouterr()
    assert said.err == (
        "The native kernels were not built: there is no C compiler: install gcc, clang or the package ziglang\n"
    )
    assert said.out == ""


def test_a_compiler_is_fetched_only_where_there_is_none(no_compiler, fakecc, monkeypatch, capsys, tmp_path):
    fetched: list[Path] = []

    @contextlib.contextmanager
    def fetched_zig(requirements, variant):
        fetched.append(requirements)
        yield fakecc.compiler

    monkeypatch.setattr(build, "fetched_zig", fetched_zig)
    monkeypatch.delenv("CC")
    assert build.main(["--fetch", "compiler.txt"]) == 0
    assert "fetching one for this build alone" in capsys.readouterr().out
    assert build.main(["--fetch", "compiler.txt"]) == 0
    assert fetched == [Path("compiler.txt")]


@pytest.mark.parametrize(
    ("system", "machine", "libc", "reason"),
    [
        ("darwin", "arm64", "", "Linux with glibc only"),
        ("win32", "AMD64", "", "Linux with glibc only"),
        ("linux", "x86_64", "", "Linux with glibc only"),  # musl has no name
        ("linux", "riscv64", "glibc", "x86_64 and aarch64 only, in 64 bits, not for riscv64"),
    ],
)
def test_other_machines_have_no_native_kernels(monkeypatch, system, machine, libc, reason):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    with pytest.raises(NoCompiler, match=reason):
        build.build()
    assert not build.supported()


@pytest.mark.parametrize(
    ("variant", "tag"),
    [
        (Variant(), "linux_x86_64"),
        (Variant(portable=True), "manylinux_2_17_x86_64"),
        (Variant(arch="aarch64", portable=True), "manylinux_2_17_aarch64"),
    ],
)
def test_wheels_say_where_they_run(variant, tag):
    assert variant.platform_tag == tag
