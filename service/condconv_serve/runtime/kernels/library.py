"""Finds, loads and checks the shared library of native kernels, once per process."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from pathlib import Path

from condconv_serve.errors import ConfigurationError
from condconv_serve.runtime.kernels import abi

LIBRARY = Path(__file__).with_name("libcondconv.so")
"""Where builds put it. It isn't there where nothing could be compiled."""

_SEAL = hashlib.sha256().digest_size


class NativeUnavailable(Exception):
    """The native kernels can't be used here. The message says why, in one line."""


class _Outcome:
    """What came of loading the library: the library, or why there is none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.library: ctypes.CDLL | None = None
        self.reason: str | None = None


_outcome = _Outcome()


def load() -> ctypes.CDLL:
    """The library of native kernels. It is loaded at the first call; later calls repeat its outcome.

    Raises:
        NativeUnavailable: it can't be used, and why.
    """
    with _outcome.lock:
        if _outcome.library is None and _outcome.reason is None:
            try:
                _outcome.library = open_library(LIBRARY)
            except NativeUnavailable as error:
                _outcome.reason = str(error)
        if _outcome.library is None:
            raise NativeUnavailable(_outcome.reason)
        return _outcome.library


def open_library(file: Path) -> ctypes.CDLL:
    """Load a library and check that it is of this version.

    Raises:
        NativeUnavailable: it can't be used, and why.
    """
    if not file.is_file():
        raise NativeUnavailable(f"the native kernels were not built: there is no {file.name}")
    try:
        if not _is_whole(file):
            raise NativeUnavailable(f"{file.name} is incomplete, or was changed since it was compiled")
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise NativeUnavailable(f"{file.name} can't be loaded: {_line(error, file)}") from error
    try:
        library.cc_version.restype = ctypes.c_int32
        version = library.cc_version()
        if version != abi.VERSION:
            raise NativeUnavailable(f"{file.name} is of version {version}, and version {abi.VERSION} is needed")
        abi.declare(library)
    except AttributeError as error:
        raise NativeUnavailable(f"{file.name} is not this version's library: {_line(error, file)}") from error
    for number, kind in enumerate(abi.STRUCTS):
        found, wanted = library.cc_struct_size(number), ctypes.sizeof(kind)
        if found != wanted:
            name = kind.__name__.removesuffix("Struct")
            raise NativeUnavailable(f"{file.name} has a {name} of {found} bytes, and {wanted} bytes are needed")
    return library


def _is_whole(file: Path) -> bool:
    """Whether a library ends with its SHA-256, as builds leave it. Loading a damaged one could end the process.

    Raises:
        OSError: it can't be read.
    """
    content = file.read_bytes()
    return content[-_SEAL:] == hashlib.sha256(memoryview(content)[:-_SEAL]).digest()


def _line(error: Exception, file: Path) -> str:
    """What the system says, in one line, and without the server's folders, since clients see it."""
    return " ".join(str(error).replace(str(file), file.name).split())


def isa() -> str:
    """The instruction set of new banks and programs; at first the best that this CPU has.

    Raises:
        NativeUnavailable: the library can't be used.
    """
    return str(load().cc_isa().decode())


def isas() -> tuple[str, ...]:
    """All instruction sets that the library knows and this CPU has, the best first.

    Raises:
        NativeUnavailable: the library can't be used.
    """
    return tuple(load().cc_isas().decode().split(","))


def use_isa(name: str) -> None:
    """Choose the instruction set of banks and programs that are made from now on, in the whole process.

    Raises:
        NativeUnavailable: the library can't be used.
        ConfigurationError: this CPU has none of that name.
    """
    if load().cc_set_isa(name.encode()) < 0:
        raise last_error()


def has_bfloat16() -> bool:
    """Whether the chosen instruction set multiplies bfloat16.

    Raises:
        NativeUnavailable: the library can't be used.
    """
    return bool(load().cc_has_bfloat16())


def use_threads(threads: int) -> None:
    """Say how many threads may compute at once, all programs together. A lone call is shared by as many.

    Raises:
        NativeUnavailable: the library can't be used.
    """
    load().cc_set_threads(threads)


def last_error() -> ConfigurationError:
    """The error for what this thread's last call of the library refused."""
    return ConfigurationError(load().cc_error().decode(errors="replace"))
