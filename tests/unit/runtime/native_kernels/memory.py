"""Arrays beside pages that nobody may touch: reading or writing beyond them ends the process."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE
_FORBIDDEN = 0  # PROT_NONE, which the module mmap doesn't name
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(array: NDArray[Any], *, at_end: bool) -> NDArray[Any]:
    """A copy of an array whose last byte lies before a forbidden page, or whose first one lies behind one.

    The array's address is then as unaligned as its size makes it.
    """
    inner = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
    pages = mmap.mmap(-1, inner + 2 * _PAGE)
    whole = np.frombuffer(pages, np.uint8)
    start = whole.ctypes.data
    for page in (start, start + _PAGE + inner):
        if _libc.mprotect(page, _PAGE, _FORBIDDEN):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = _PAGE + (inner - array.nbytes if at_end else 0)
    copy = whole[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
