"""Loading the native library: once, with one clear line wherever it can't be used."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi, build, library
from condconv_serve.runtime.kernels.library import NativeUnavailable


@pytest.fixture
def forgotten(monkeypatch):
    """As if nothing had been loaded yet."""
    monkeypatch.setattr(library, "_outcome", library._Outcome())


def compiled(folder: Path, source: str) -> Path:
    """A shared library of a source; skips where nothing can be compiled."""
    try:
        compiler = build.find_compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    (folder / "other.c").write_text(source)
    compiler.run("-shared", "-fPIC", "other.c", "-o", "libcondconv.so", within=folder)
    file = folder / "libcondconv.so"
    build.seal(file)
    return file


def reason(file: Path) -> str:
    with pytest.raises(NativeUnavailable) as caught:
        library.open_library(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file.parent) not in message
    return message


def test_missing_library_was_not_built(tmp_path):
    assert "were not built" in reason(tmp_path / "libcondconv.so")


def test_folder_is_no_library(tmp_path):
    assert "were not built" in reason(tmp_path)


@pytest.mark.parametrize("seal", [True, False])
def test_other_bytes_are_no_library(tmp_path, seal):
    file = tmp_path / "libcondconv.so"
    file.write_bytes(b"no library\n" * 100)
    if seal:
        build.seal(file)
    assert ("can't be loaded" if seal else "is incomplete") in reason(file)


@pytest.mark.parametrize("damage", ["cut off", "ends in zeros", "one bit", "empty"])
def test_a_library_that_is_damaged(tmp_path, damage):
    file = compiled(tmp_path, "int cc_version(void) { return 99; }\n")
    content = bytearray(file.read_bytes())
    if damage == "ends in zeros":  # loading it would end this process
        content[4096:] = bytes(len(content) - 4096)
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    file.write_bytes({"cut off": content[:-1], "empty": b""}.get(damage, content))
    assert reason(file) == "libcondconv.so is incomplete, or was changed since it was compiled"


def test_library_of_another_version(tmp_path):
    file = compiled(tmp_path, "int cc_version(void) { return 99; }\n")
    assert reason(file) == f"libcondconv.so is of version 99, and version {abi.VERSION} is needed"


def test_library_that_lacks_everything(tmp_path):
    assert "cc_version" in reason(compiled(tmp_path, "int other(void) { return 0; }\n"))


def test_library_that_lacks_a_function(tmp_path):
    file = compiled(tmp_path, f"int cc_version(void) {{ return {abi.VERSION}; }}\n")
    assert "cc_struct_size" in reason(file)


def test_library_with_other_structs(tmp_path):
    functions = "".join(
        f"int {name}(void) {{ return {abi.VERSION if name == 'cc_version' else 3}; }}\n" for name in abi.FUNCTIONS
    )
    message = reason(compiled(tmp_path, functions))
    assert message == (
        f"libcondconv.so has a BankSpec of 3 bytes, and {ctypes.sizeof(abi.BankSpecStruct)} bytes are needed"
    )


@pytest.mark.usefixtures("forgotten")
def test_outcome_is_remembered(tmp_path, monkeypatch):
    opened = []

    def open_library(file):
        opened.append(file)
        raise NativeUnavailable("not today")

    monkeypatch.setattr(library, "open_library", open_library)
    for _ in range(3):
        with pytest.raises(NativeUnavailable, match="not today"):
            library.load()
    assert opened == [library.LIBRARY]


def test_library_is_loaded_once(native):
    assert library.load() is native


def test_best_instruction_set_comes_first_and_generic_is_always_there(native):
    assert library.isa() in library.isas()
    assert "generic" in library.isas()


def test_unknown_instruction_set_is_refused(native):
    before = library.isa()
    with pytest.raises(ConfigurationError, match=r'no instruction set "sse9", only .*generic'):
        library.use_isa("sse9")
    assert library.isa() == before


def test_errors_are_of_their_own_thread(native):
    import threading

    with pytest.raises(ConfigurationError):
        library.use_isa("mine")
    other = threading.Thread(target=native.cc_set_isa, args=(b"theirs",))
    other.start()
    other.join()
    assert '"mine"' in str(library.last_error())
