"""The control groups that this process is in. Each may set a limit, and the least one counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROCESS = Path("/proc/self")


def control_groups(controller: str, process: Path = PROCESS) -> Iterator[Path]:
    """Find the directories of a process's control groups, each with all groups around it, the innermost first.

    systemd, for instance, nests a service within a slice, and either may have the limit.

    Args:
        controller: of version 1, such as `memory`. Version 2 has one tree for all of them.
        process: its directory in /proc.

    Yields:
        Directories of version 2 and of version 1, which call their files differently (cgroups(7)). None where the
        system has no control groups.
    """
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        is_version_2 = number == "0" and not controllers
        if not is_version_2 and controller not in controllers.split(","):
            continue
        for _, _, _, root, mounted_at, *rest in mounts:
            kind, _, options = rest[rest.index("-") + 1 :]
            wanted = kind == "cgroup2" if is_version_2 else kind == "cgroup" and controller in options.split(",")
            if wanted:
                yield from _upwards(Path(mounted_at), _within(path, root))
                break


def _within(path: str, root: str) -> PurePosixPath:
    """A group's path below the group that is mounted. A container may see only its own, by the name the host has."""
    group = PurePosixPath(path)
    known = group.is_relative_to(root) and ".." not in group.parts
    return group.relative_to(root) if known else PurePosixPath()


def _upwards(mounted_at: Path, group: PurePosixPath) -> Iterator[Path]:
    yield mounted_at / group
    for around in group.parents:
        yield mounted_at / around
