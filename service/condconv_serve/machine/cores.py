"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from condconv_serve.machine.cgroups import PROCESS, control_groups

_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


def available_cores(process: Path = PROCESS) -> int:
    """Physical cores that this process may use: its affinity, siblings counted once, and its control groups' limit."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(cpu) for cpu in allowed}
    limit = _least_quota(process)
    return len(siblings) if limit is None else max(1, min(len(siblings), math.ceil(limit)))


def _siblings(cpu: int) -> str:
    try:
        return (_CPU_DIRECTORY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _least_quota(process: Path) -> float | None:
    """Seconds of CPU time per second that the control groups allow; None for no limit."""
    quotas = [quota for group in control_groups("cpu", process) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))  # version 1
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else int(quota) / int(period)
