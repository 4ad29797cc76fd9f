"""Processes in control groups: stand-ins of what /proc and /sys say."""

from __future__ import annotations

from pathlib import Path

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
