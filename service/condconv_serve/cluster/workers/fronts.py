"""How many fronts a server has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from condconv_serve.machine.accelerators import has_accelerators
from condconv_serve.machine.cores import available_cores

CORES_PER_FRONT = 8
"""On a CPU, where most of the cores compute: a front with its decoding keeps about one in six of eight cores busy."""
CORES_PER_FRONT_BESIDE_ACCELERATORS = 4
"""With accelerators, all cores are there for fronts: one front's event loop ends where its decoding fills four."""


def count_fronts(workers: int | Literal["auto"], *, cores: int | None = None, devices: Path = Path("/dev")) -> int:
    """How many processes speak HTTP and gRPC; 1 means that one process does everything.

    Args:
        workers: the setting.
        cores: that this process may use; None looks.
        devices: where accelerators have their files.
    """
    if workers != "auto":
        return workers
    cores = available_cores() if cores is None else cores
    return max(1, cores // (CORES_PER_FRONT_BESIDE_ACCELERATORS if has_accelerators(devices) else CORES_PER_FRONT))
