"""How much memory this process may use, and how it gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from condconv_serve.machine.cgroups import PROCESS, control_groups

_RARER = 100
_MEMORY_INFO = Path("/proc/meminfo")


def memory_limit(process: Path = PROCESS) -> int | None:
    """Bytes of memory that a process may use: the least limit of its control groups, or all memory there is.

    None if that isn't known.
    """
    if not hasattr(os, "sysconf"):
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in control_groups("memory", process):
        # Versions 2 and 1. Version 1 says that there is no limit with a number beyond all memory.
        limits += [n for name in ("memory.max", "memory.limit_in_bytes") if (n := _number(group / name)) is not None]
    return min(limits)


def memory_left(process: Path = PROCESS, memory_info: Path = _MEMORY_INFO) -> int | None:
    """Bytes that a process may still take: the least of what its control groups and the machine leave.

    Files that are kept in memory only to be read faster don't count as used, since the system drops them when it needs
    their place. Swap isn't counted: a network in swap answers too late. None if nothing is known.
    """
    left = [found for group in control_groups("memory", process) if (found := _left_in(group)) is not None]
    with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
        left.append(_fields(memory_info)["MemAvailable:"] * 1024)
    return max(min(left), 0) if left else None


def _left_in(group: Path) -> int | None:
    """What one control group leaves; None if it sets no limit."""
    # Beyond memory.high nothing is killed, but all of the group is slowed down until it can hardly answer.
    limits = [n for name in ("memory.max", "memory.high", "memory.limit_in_bytes") if (n := _number(group / name))]
    used = next((n for name in ("memory.current", "memory.usage_in_bytes") if (n := _number(group / name))), None)
    if not limits or used is None:
        return None
    return min(limits) - used + _droppable(group)


def _droppable(group: Path) -> int:
    """Bytes of files that nobody has mapped: code that runs would have to be read again at once."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        found = _fields(group / "memory.stat")
        whole = "total_" if "total_inactive_file" in found else ""  # version 1: with the groups below
        files = sum(found.get(f"{whole}{name}", 0) for name in ("inactive_file", "active_file"))
        mapped = found.get("file_mapped", found.get(f"{whole}mapped_file", 0))
        return max(files - mapped, 0) + found.get("slab_reclaimable", 0)
    return 0


def _number(file: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _fields(file: Path) -> dict[str, int]:
    """The first number after each name, one pair per line."""
    return {line.split()[0]: int(line.split()[1]) for line in file.read_text().splitlines()}


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of memory that a process has now, and the most that it ever had."""

    now: int
    most: int


def memory_use(process: Path = PROCESS) -> MemoryUse | None:
    """How much memory a process has; None if the system doesn't tell."""
    try:
        found = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        now, most = (int(found[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return MemoryUse(now, most)


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
