"""The native library, where it was built."""

from __future__ import annotations

import ctypes

import pytest

from condconv_serve.runtime.kernels import library
from condconv_serve.runtime.kernels.library import NativeUnavailable


@pytest.fixture(scope="session")
def native() -> ctypes.CDLL:
    """The library as ctypes has it; skips where it can't be used, and says why."""
    try:
        return library.load()
    except NativeUnavailable as error:
        pytest.skip(str(error))
