"""How much memory this process may use, and how it gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

from condconv_serve.machine.cgroups import PROCESS, control_groups

_RARER = 100


def memory_limit(process: Path = PROCESS) -> int | None:
    """Bytes of memory that a process may use: the least limit of its control groups, or all memory there is.

    None if that isn't known.
    """
    if not hasattr(os, "sysconf"):
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in control_groups("memory", process):
        for name in ("memory.max", "memory.limit_in_bytes"):  # versions 2 and 1
            # No such file, or "max", is no limit. Version 1 says so with a number beyond all memory.
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((group / name).read_text()))
    return min(limits)


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Keep the garbage collector still while much is made that stays: it saves a tenth of TensorFlow's import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def calm_garbage_collection() -> None:
    """Keep the garbage collector from holding up requests.

    Call it once, when everything has been imported. The collector would look through the 400,000 objects of TensorFlow
    and Keras again and again, 0.2 s each time, so these are marked as permanent. Under overload it would do the same
    with the objects of some hundred waiting requests, 0.1 s each time. Hardly any old object is garbage, so old objects
    are looked through a hundred times less often than usual. Loading and unloading do leave garbage behind, and collect
    it themselves.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, old * _RARER)


def release_memory() -> None:
    """Give freed memory back to the system.

    Building an engine frees several times its size, and glibc would keep that.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
