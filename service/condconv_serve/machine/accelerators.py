"""Whether the machine has accelerators, as far as the system's device files say."""

from __future__ import annotations

from pathlib import Path

_FILES = ("nvidia0", "kfd", "accel0", "vfio/0")


def has_accelerators(devices: Path = Path("/dev")) -> bool:
    """Whether there is a GPU or a TPU; `devices` is where they have their files. It loads no library."""
    return any((devices / name).exists() for name in _FILES)
