"""Processes in control groups: stand-ins of what /proc and /sys say, and real groups where these may be made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from condconv_serve.machine.cgroups import control_groups

GROUPS = "5:memory:/\n4:cpu:/\n0::/\n"
MOUNTS = ("/ {} cgroup2 rw", "/ {}/memory cgroup rw,memory", "/ {}/cpu cgroup rw,cpu")
"""Both versions at their root, as a container sees them."""


def write_process(
    directory: Path, *, files: dict[str, str], groups: str = "0::/\n", mounts: tuple[str, ...] = ("/ {} cgroup2 rw",)
) -> Path:
    """Write what /proc says of a process.

    Args:
        directory: for the process and, in `sys`, the control groups.
        files: of the control groups, by path below `sys`.
        groups: /proc/self/cgroup.
        mounts: what is mounted where, and how: `root place kind options`, with {} for `sys`.

    Returns:
        The process's directory.
    """
    process, system = directory / "proc", directory / "sys"
    process.mkdir()
    system.mkdir()
    for name, text in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(text)
    (process / "cgroup").write_text(groups)
    lines = []
    for number, mount in enumerate(mounts):
        root, place, kind, options = mount.format(system).split()
        lines.append(f"{number} 1 0:{number} {root} {place} rw,relatime shared:{number} - {kind} none {options}\n")
    (process / "mountinfo").write_text("23 1 0:20 / / rw - ext4 /dev/vda rw\n" + "".join(lines))
    return process


@contextlib.contextmanager
def group_within_a_limited_one(limit: int) -> Iterator[Path]:
    """Make two real control groups, one in the other; the outer one may use so many bytes. Yields the inner one.

    Where nobody may make them, the test is skipped. No process may be in them when the block ends.
    """
    for group in control_groups("memory"):
        outer, inner = group / "condconv-test", group / "condconv-test" / "inner"
        try:
            outer.mkdir()
        except OSError:
            continue
        try:
            for name in ("memory.max", "memory.limit_in_bytes"):
                if (outer / name).exists():
                    inner.mkdir()
                    try:
                        (outer / name).write_text(str(limit))
                        yield inner
                    finally:
                        inner.rmdir()
                    return
        finally:
            outer.rmdir()
    pytest.skip("nobody may make a control group with a limit of memory here")
