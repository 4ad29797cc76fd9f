"""The wheels and the source distribution of a release, as `make wheel` left them in dist/."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from condconv_serve import __version__

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]
NAME = f"condconv_serve-{__version__}"
KERNELS = "condconv_serve/runtime/kernels"
LIBRARY = f"{KERNELS}/libcondconv.so"
MACHINES = {"x86_64": 62, "aarch64": 183}
"""ELF's numbers of architectures."""


@pytest.fixture(params=sorted(MACHINES))
def arch(request):
    return request.param


@pytest.fixture
def wheel(arch):
    with zipfile.ZipFile(ROOT / "dist" / f"{NAME}-py3-none-manylinux_2_17_{arch}.whl") as file:
        yield file


def test_it_says_where_it_runs_and_is_for_any_python(wheel, arch):
    text = wheel.read(f"{NAME}.dist-info/WHEEL").decode()
    assert f"Tag: py3-none-manylinux_2_17_{arch}\n" in text
    assert "Root-Is-Purelib: false\n" in text


def test_it_has_the_library_and_not_what_it_was_made_of(wheel):
    names = wheel.namelist()
    assert LIBRARY in names
    assert f"{KERNELS}/library.py" in names
    assert f"{KERNELS}/build.py" not in names
    assert [name for name in names if "csrc" in name or name.endswith((".o", ".c", ".h"))] == []


def test_it_has_the_model_that_is_shipped_and_no_other(wheel):
    model = "condconv_serve/model_store/efficientnet-lite0-condconv-4e"
    names = {name for name in wheel.namelist() if "model_store" in name}
    files = {path.name for path in (ROOT / "model_store" / "efficientnet-lite0-condconv-4e" / "1").iterdir()}
    assert names == {"condconv_serve/model_store/default.json", *(f"{model}/1/{name}" for name in files)}


def test_the_library_is_for_this_machine_and_small(wheel, arch):
    library = wheel.read(LIBRARY)
    assert library[:6] == b"\x7fELF\x02\x01", "64 bits, little-endian"
    assert int.from_bytes(library[18:20], "little") == MACHINES[arch]
    assert len(library) < 2_000_000


def test_the_library_needs_nothing_but_an_old_glibc(wheel):
    library = wheel.read(LIBRARY)
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"\0GLIBC_([0-9.]+)", library)}
    assert versions
    assert max(versions) <= (2, 17)
    needed = set(re.findall(rb"\0([\w.+-]+\.so[.0-9]*)(?=\0)", library))
    assert b"libc.so.6" in needed
    # TensorFlow's is looked for at run time, and its name is there for that.
    of_glibc = {b"libc", b"libm", b"libdl", b"libpthread", b"ld-linux-x86-64", b"ld-linux-aarch64"}
    assert {name.split(b".")[0] for name in needed} <= of_glibc | {b"libtensorflow_framework"}


def test_the_library_knows_no_place_where_it_was_built(wheel):
    library = wheel.read(LIBRARY)
    places = [os.fsencode(ROOT), b"/tmp/", b"/home/", b"/root/", b"site-packages", b"ziglang", b".c\0"]
    assert [place for place in places if place in library] == []


def test_installed_from_the_wheel_it_loads(tmp_path):
    wheel = ROOT / "dist" / f"{NAME}-py3-none-manylinux_2_17_{platform.machine()}.whl"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*pip, str(wheel)], check=True)
    code = (
        "from condconv_serve.runtime.kernels import library; print(library.__file__, library.isas())\n"
        "from condconv_serve.store.embedded import embedded_store; print(embedded_store())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path))
    assert "generic" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "condconv_serve" / "model_store")


def test_the_source_distribution_has_all_sources_and_nothing_compiled():
    with tarfile.open(ROOT / "dist" / f"{NAME}.tar.gz") as file:
        names = {name.removeprefix(f"{NAME}/") for name in file.getnames()}
    sources = (ROOT / "service" / KERNELS / "csrc").glob("*.[ch]")
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names
    assert {"hatch_build.py", "pyproject.toml", f"service/{KERNELS}/build.py", "model_store/default.json"} <= names
    assert [name for name in names if name.endswith((".so", ".o")) or "csrc/build" in name] == []


def test_without_a_compiler_it_becomes_a_wheel_of_python_alone(tmp_path):
    with tarfile.open(ROOT / "dist" / f"{NAME}.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    done = subprocess.run(
        [ROOT / os.environ["WHEEL_PYTHON"], "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=tmp_path / NAME,
        env=os.environ | {"CC": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "The native kernels were not built, so TensorFlow's do their work: CC is 'false'" in done.stdout
    with zipfile.ZipFile(tmp_path / f"{NAME}-py3-none-any.whl") as wheel:
        assert LIBRARY not in wheel.namelist()
