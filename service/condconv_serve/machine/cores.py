"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


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
