"""Compiles csrc/ into libcondconv.so, if anything in it has changed: `python build.py --help`.

It needs nothing but Python, since it also runs where the package and what it needs aren't installed: hatch_build.py
calls it while a wheel is built, and the Makefile before the package is installed. The compiler is $CC, else `cc`, `gcc`
or `clang`, else that of the package `ziglang`, which also compiles for other architectures and old versions of glibc.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = Path(__file__).parent / "libcondconv.so"
WORK = SOURCES / "build"
"""Object files, and libraries other than the one that is served with."""
KEEP_OBJECTS = 7 * 24 * 3600
"""Seconds after which an object file that no build uses is deleted."""

PER_SET = ("conv.c", "depthwise.c", "elementwise.c", "isa.c", "mixing.c", "pack.c", "patches.c", "product.c")
"""Sources that are compiled once per instruction set; all others are compiled once."""

FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno")
WARNINGS = ("-Wall", "-Wno-psabi")
LIBRARIES = ("-lpthread", "-ldl", "-lm")
GLIBC = "2.17"
"""What libraries for other machines need at least: as old as manylinux2014."""

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "generic": (),
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512_bf16": (*_AVX512, "-mavx512bf16"),
        "amx_bf16": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    },
    "aarch64": {"generic": (), "neon": ()},
}
"""Flags of each instruction set, by architecture. Set `x` defines CC_ISA_X."""
_SOON_COMPILED = ("-Og", "-fno-tree-coalesce-vars", "-Wno-ignored-optimization-argument")
"""For tests: without these some vectors of AVX-512 that are made of smaller ones take GCC a minute."""
EMULATED = dict.fromkeys(("avx512", "avx512_bf16", "amx_bf16"), ("-DCC_EMULATE", *_AVX2, *_SOON_COMPILED))
"""Flags of the sets that --emulate compiles for CPUs without them."""

_TRIAL = (
    "#include <dlfcn.h>\n#include <math.h>\n#include <pthread.h>\n#include <stdlib.h>\nint trial(void) { return 0; }\n"
)


class NoCompiler(Exception):
    """There is nothing to compile with, or not for this machine; the message says what is missing."""


class CompileError(Exception):
    """The compiler refused a source; the message is the compiler's."""


@dataclass(frozen=True)
class Variant:
    """What kind of library is built: the product's by default, the others for tests."""

    arch: str = ""  # "": this machine's
    portable: bool = False  # for any machine of its architecture, with glibc 2.17 or newer; needs ziglang
    sanitize: str = ""  # as in -fsanitize=
    emulate: bool = False  # AVX-512's code, but compiled for CPUs that only have AVX2

    @property
    def target(self) -> str:
        """The architecture that is built for."""
        return self.arch or this_arch()

    @property
    def directory(self) -> Path:
        """Where what it was made of is kept, and its library if it is not the product's own."""
        parts = [self.target, "portable" * self.portable, self.sanitize.replace(",", "-"), "emulate" * self.emulate]
        return WORK / "-".join(filter(None, parts))

    @property
    def platform_tag(self) -> str:
        """The machines that it runs on, as wheels name them."""
        machines = f"manylinux_{GLIBC.replace('.', '_')}" if self.portable else "linux"
        return f"{machines}_{self.target}"

    @property
    def library(self) -> Path:
        """Where the library goes."""
        own = self.target == this_arch() and not (self.portable or self.sanitize or self.emulate)
        return LIBRARY if own else self.directory / LIBRARY.name


@dataclass(frozen=True)
class Compiler:
    """A C compiler that works."""

    command: tuple[str, ...]
    version: str

    def run(self, *arguments: str, within: Path, output: bool = False) -> str:
        """Call the compiler in this folder, and return its warnings, or its output; CompileError if it fails."""
        done = subprocess.run(
            [*self.command, *arguments], cwd=within, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            command = shlex.join([*self.command, *arguments])
            raise CompileError(f"{done.stderr.strip()}\n(from: {textwrap.shorten(command, 600)})")
        return done.stdout if output else done.stderr

    def accepts(self, flags: Sequence[str]) -> bool:
        """Whether it knows these flags."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "trial.c").write_text("int trial(void) { return 0; }\n")
            with contextlib.suppress(CompileError):
                self.run(*flags, "-c", "trial.c", "-o", "trial.o", within=Path(directory))
                return True
        return False


def this_arch() -> str:
    """The architecture that this Python runs on, or NoCompiler if there are no kernels for it."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        raise NoCompiler("the native kernels are for Linux with glibc only")
    if arch not in SETS or sys.maxsize < 2**32:
        raise NoCompiler(f"there are native kernels for {' and '.join(SETS)} only, in 64 bits, not for {arch}")
    return arch


def supported() -> bool:
    """Whether there are native kernels for this machine."""
    try:
        return bool(this_arch())
    except NoCompiler:
        return False


def find_compiler(variant: Variant = Variant()) -> Compiler:
    """The first compiler that can build this variant here, or NoCompiler."""
    if not any(SOURCES.glob("*.c")):
        raise NoCompiler(f"there are no sources in {SOURCES}")
    if variant.portable or variant.target != this_arch():
        return zig(_zig_binary(), variant)
    if os.environ.get("CC"):
        if compiler := _working(shlex.split(os.environ["CC"])):
            return compiler
        raise NoCompiler(
            f"CC is {os.environ['CC']!r}, which compiles nothing; it needs the headers of the C library, too"
        )
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name) and (compiler := _working([name])):
            return compiler
    return zig(_zig_binary(), variant)


def zig(binary: Path, variant: Variant) -> Compiler:
    """Zig's C compiler, for any machine of the variant's architecture."""
    if compiler := _working([str(binary), "cc", "-target", f"{variant.target}-linux-gnu.{GLIBC}"]):
        return Compiler(compiler.command, f"Zig's {compiler.version}")
    raise NoCompiler(f"{binary} compiles nothing")


@contextlib.contextmanager
def fetched_zig(requirements: Path, variant: Variant) -> Iterator[Compiler]:
    """Zig's compiler in a temporary folder, as a pip's requirements file names it; NoCompiler if it can't be had."""
    with tempfile.TemporaryDirectory(prefix="condconv-build-") as directory:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        command += ["--require-hashes", "--no-deps", "--target", directory, "--requirement", str(requirements)]
        if subprocess.run(command).returncode:
            raise NoCompiler("there is no C compiler, and ziglang can't be installed")
        # Zig keeps what it compiles for itself; nothing of it stays.
        with _environment(ZIG_GLOBAL_CACHE_DIR=f"{directory}/cache", ZIG_LOCAL_CACHE_DIR=f"{directory}/cache"):
            yield zig(Path(directory, "ziglang", "zig"), variant)


def is_current(variant: Variant = Variant()) -> bool:
    """Whether the library is there, and was made of the present sources with the present flags and $CC."""
    state = _state(variant)
    return variant.library.exists() and state is not None and state["made_of"] == _digest(variant)


def build(variant: Variant = Variant(), *, compiler: Compiler | None = None, force: bool = False) -> Path:
    """Compile the library unless it is current, and return its path.

    Errors: NoCompiler, CompileError, OSError (nothing can be written). An older library stays then.
    """
    variant.directory.mkdir(parents=True, exist_ok=True)
    with _only_one(variant.directory / "lock"):
        if force or not is_current(variant):
            _compile(variant, compiler or find_compiler(variant))
    return variant.library


def _compile(variant: Variant, compiler: Compiler) -> None:
    began = time.monotonic()
    left_out = tuple(name for name, flags in _sets(variant).items() if flags and not compiler.accepts(flags))
    store = WORK / "objects"
    store.mkdir(exist_ok=True)
    objects = {
        store / f"{label}-{_object_digest(compiler, source, flags)}.o": (source, flags)
        for label, source, flags in _units(variant, left_out)
    }
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        warnings = list(pool.map(lambda item: _compile_one(compiler, item[0], *item[1]), objects.items()))
    link = ["-shared", "-O3", *(() if variant.sanitize else ("-s", "-Wl,-z,defs")), *_sanitizer(variant)]
    with _replacing(variant.library) as new:
        compiler.run(*link, "-o", str(new), *map(str, objects), *LIBRARIES, within=SOURCES)
        seal(new)
    for path in store.glob("*.o"):
        if time.time() - path.stat().st_mtime > KEEP_OBJECTS:
            path.unlink()
    state = {"made_of": _digest(variant), "compiler": compiler.version, "left_out": left_out}
    (variant.directory / "state.json").write_text(json.dumps(state))
    print("".join(dict.fromkeys(warnings)), end="", file=sys.stderr)
    for name in left_out:
        print(f"{compiler.version} can't compile for {name}, so CPUs with it use the next best", file=sys.stderr)
    size = variant.library.stat().st_size / 1e6
    print(f"Compiled {variant.library.name} in {time.monotonic() - began:.0f} s ({compiler.version}; {size:.1f} MB)")


def seal(library: Path) -> None:
    """Append a library's SHA-256, by which library.py knows that all of it is there. What loads it reads no further."""
    digest = hashlib.sha256(library.read_bytes()).digest()
    with library.open("ab") as file:
        file.write(digest)


def _compile_one(compiler: Compiler, path: Path, source: str, flags: Sequence[str]) -> str:
    """The compiler's warnings; none if the object file is there already."""
    if path.exists():
        path.touch()
        return ""
    with _replacing(path) as new:
        # By a relative path, so that none is in the library.
        return compiler.run(*flags, "-c", source, "-o", str(new), within=SOURCES)


def _units(variant: Variant, left_out: Sequence[str] = ()) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Label, source and flags of every object file."""
    common = (*FLAGS, *WARNINGS, *_sanitizer(variant))
    for source in sorted(path.name for path in SOURCES.glob("*.c")):
        if source in PER_SET:
            for name, flags in _sets(variant).items():
                if name not in left_out:
                    yield f"{source[:-2]}-{name}", source, (*common, f"-DCC_ISA_{name.upper()}", *flags)
        else:
            emulate = ("-DCC_EMULATE",) if variant.emulate else ()
            yield source[:-2], source, (*common, *emulate, *(f"-DCC_WITHOUT_{name.upper()}" for name in left_out))


def _sets(variant: Variant) -> dict[str, tuple[str, ...]]:
    sets = SETS[variant.target]
    return {name: EMULATED.get(name, flags) if variant.emulate else flags for name, flags in sets.items()}


def _sanitizer(variant: Variant) -> tuple[str, ...]:
    if not variant.sanitize:
        return ()
    flags = (f"-fsanitize={variant.sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
    return (*flags, *_SOON_COMPILED)


def _digest(variant: Variant) -> str:
    """Changes with everything that is compiled, and with how. It asks no compiler, since there may be none any more."""
    made_of = (list(_units(variant)), LIBRARIES, os.environ.get("CC", ""), "sealed")
    digest = hashlib.sha256(repr(made_of).encode())
    for path in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _object_digest(compiler: Compiler, source: str, flags: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((compiler, flags)).encode())
    for path in (SOURCES / source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _state(variant: Variant) -> dict[str, object] | None:
    try:
        state = json.loads((variant.directory / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and "made_of" in state else None


def _zig_binary() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise NoCompiler("there is no C compiler: install gcc, clang or the package ziglang")
    return Path(spec.origin).parent / "zig"


def _working(command: Sequence[str]) -> Compiler | None:
    """The compiler of that name, if it compiles and links something that includes the C library's headers."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "trial.c").write_text(_TRIAL)
        try:
            version = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
            compiler = Compiler(tuple(command), version)
            compiler.run("-O3", "-shared", "-fPIC", "trial.c", "-o", "trial.so", *LIBRARIES, within=Path(directory))
        except (CompileError, OSError):
            return None
    return compiler


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that then takes `path`'s place at once: running servers keep the old one."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as directory:
        new = Path(directory, path.name)
        yield new
        os.replace(new, path)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    import fcntl  # Windows has none; this_arch() has refused it before

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build as the command line says: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description="Compiles the native kernels into libcondconv.so.")
    parser.add_argument(
        "--arch", choices=SETS, default="", help="build for this architecture (default: this machine's)"
    )
    parser.add_argument(
        "--portable", action="store_true", help=f"for any such machine with glibc {GLIBC}; needs ziglang"
    )
    parser.add_argument("--sanitize", default="", metavar="LIST", help="address,undefined or thread, for tests")
    parser.add_argument("--emulate", action="store_true", help="AVX-512's code for CPUs with AVX2 only, for tests")
    parser.add_argument(
        "--fetch", type=Path, metavar="FILE", help="without a compiler, install this into a temporary folder"
    )
    parser.add_argument("--optional", action="store_true", help="where it can't be built, say so in a line and succeed")
    parser.add_argument("--force", action="store_true", help="compile even if nothing has changed")
    asked = parser.parse_args(arguments)
    variant = Variant(arch=asked.arch, portable=asked.portable, sanitize=asked.sanitize, emulate=asked.emulate)
    try:
        _build_or_fetch(variant, fetch=asked.fetch, force=asked.force)
    except (NoCompiler, CompileError, OSError) as error:
        print(f"The native kernels were not built: {error}", file=sys.stderr)
        return 0 if asked.optional else 1
    return 0


def _build_or_fetch(variant: Variant, *, fetch: Path | None, force: bool) -> None:
    try:
        build(variant, force=force)
    except NoCompiler:
        if fetch is None or not sys.platform.startswith("linux"):
            raise
        print("There is no C compiler; fetching one for this build alone (about 100 MB) ...")
        with fetched_zig(fetch, variant) as compiler:
            build(variant, compiler=compiler, force=force)


if __name__ == "__main__":
    sys.exit(main())
