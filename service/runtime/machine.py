"""What this machine offers: cores, number formats, accelerators, optional engines."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import math
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.tensorflow_import import import_tensorflow

Device = Literal["cpu", "gpu", "tpu"]

_CGROUP = Path("/sys/fs/cgroup")
_CPU_DIRECTORY = Path("/sys/devices/system/cpu")
_ACCELERATOR_FILES = ("nvidia0", "kfd", "accel0", "vfio/0")
_NICENESS = 5
_RARER = 100


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are the physical cores that this process may use; `accelerators` TensorFlow's names of the devices."""

    cores: int
    cpu_bfloat16: bool
    openvino: bool
    accelerators: tuple[tuple[Device, str], ...] = ()
    accelerator_bfloat16: bool = False


def detect_machine(*, look_for_accelerators: bool) -> Machine:
    """Look at this machine.

    Args:
        look_for_accelerators: whether to ask TensorFlow even where no device file hints at an accelerator. That
            imports TensorFlow.
    """
    accelerators: tuple[tuple[Device, str], ...] = ()
    bfloat16 = False
    if look_for_accelerators or any((Path("/dev") / name).exists() for name in _ACCELERATOR_FILES):
        accelerators, bfloat16 = _accelerators()
    return Machine(
        cores=available_cores(),
        cpu_bfloat16=_cpu_has_bfloat16(),
        openvino=importlib.util.find_spec("openvino") is not None,
        accelerators=accelerators,
        accelerator_bfloat16=bfloat16,
    )


def available_cores() -> int:
    """Physical cores that this process may use: its affinity, siblings counted once, and its container's CPU limit."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(cpu) for cpu in allowed}
    limit = _cgroup_limit()
    return len(siblings) if limit is None else max(1, min(len(siblings), math.ceil(limit)))


def _siblings(cpu: int) -> str:
    try:
        return (_CPU_DIRECTORY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_limit() -> float | None:
    """CPUs' worth of time per second that the control group allows, versions 2 and 1; None for no limit."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def memory_limit() -> int | None:
    """Bytes of memory that this process may use: its container's limit, or all there is; None if that isn't known."""
    if not hasattr(os, "sysconf"):
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups of version 2 and 1
        # No such file, or "max", is no limit. Version 1 says so with a number beyond all memory.
        with contextlib.suppress(OSError, ValueError):
            return min(memory, int((_CGROUP / name).read_text()))
    return memory


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; elsewhere it would be slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _accelerators() -> tuple[tuple[tuple[Device, str], ...], bool]:
    import_tensorflow()
    import tensorflow as tf

    found: list[tuple[Device, str]] = []
    bfloat16 = True
    kinds: tuple[Device, ...] = ("gpu", "tpu")
    for kind in kinds:
        for number, device in enumerate(tf.config.list_physical_devices(kind.upper())):
            found.append((kind, f"{kind.upper()}:{number}"))
            if kind == "gpu":
                # Ampere, compute capability 8, is the first to multiply bfloat16 natively.
                capability = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
                bfloat16 = bfloat16 and capability >= (8, 0)
    return tuple(found), bfloat16 and bool(found)


def calm_garbage_collection() -> None:
    """Keep the garbage collector from holding up requests; to be called once, when everything has been imported.

    It would look again and again through the 400,000 objects that TensorFlow and Keras consist of, 0.2 s each time, so
    these are taken for permanent. Under overload it would then do so with those of some hundred waiting requests, 0.1 s
    each time. Hardly anything old is garbage, so it looks through old objects a hundred times more rarely than usual;
    loading and unloading, which do leave garbage behind, have it collected themselves.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, old * _RARER)


def release_memory() -> None:
    """Give freed memory back to the system: building an engine frees several times its size, which glibc would keep."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def yield_to_other_threads(steps: int = 1) -> None:
    """Let the other threads of this process go before the calling one, on Linux, the only system that can.

    Those that yield by more steps come after those that yield by fewer.

    For threads that compute without pause: the event loop needs little time, but soon, or else no one gets answers.
    """
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + steps * _NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
