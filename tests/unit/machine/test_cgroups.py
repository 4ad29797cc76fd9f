import subprocess
import sys

import pytest

from condconv_serve.machine.cgroups import control_groups
from condconv_serve.machine.cores import available_cores
from condconv_serve.machine.memory import memory_limit
from tests.unit.machine.processes import group_within_a_limited_one, write_process

SERVICE = "0::/system.slice/condconv.service\n"
VERSION_1 = ("/ {}/memory cgroup rw,memory", "/ {}/cpu,cpuacct cgroup rw,cpu,cpuacct")


@pytest.mark.parametrize(
    ("groups", "mounts", "found"),
    [
        (SERVICE, ("/ {} cgroup2 rw",), ["system.slice/condconv.service", "system.slice", ""]),
        ("0::/\n", ("/ {} cgroup2 rw",), [""]),
        # A container without a namespace of its own sees the name that the host has.
        ("0::/docker/12ab\n", ("/docker/12ab {} cgroup2 rw",), [""]),
        ("0::/docker/12ab/inner\n", ("/docker/12ab {} cgroup2 rw",), ["inner", ""]),
        ("0::/docker/12ab\n", ("/docker/other {} cgroup2 rw",), [""]),
        ("0::/../outside\n", ("/ {} cgroup2 rw",), [""]),
        ("5:memory:/a\n3:cpu,cpuacct:/b\n", VERSION_1, ["memory/a", "memory"]),
        ("5:memory:/a\n1:name=systemd:/b\n0::/c\n", (*VERSION_1, "/ {}/unified cgroup2 rw"),
         ["memory/a", "memory", "unified/c", "unified"]),
        ("5:memory:/a\n", (), []),
        ("", ("/ {} cgroup2 rw",), []),
    ],
    ids=["service", "root", "host's name", "below it", "foreign", "outside", "v1", "hybrid", "unmounted", "none"],
)  # fmt: skip
def test_all_groups_around_a_process_are_found(groups, mounts, found, tmp_path):
    process = write_process(tmp_path, files={}, groups=groups, mounts=mounts)
    assert list(control_groups("memory", process)) == [tmp_path / "sys" / place for place in found]


def test_a_system_without_control_groups(tmp_path):
    assert list(control_groups("memory", tmp_path)) == []


@pytest.mark.parametrize(
    ("place", "limit"), [("system.slice/condconv.service/", 900), ("system.slice/", 700), ("", 500)]
)
def test_the_least_limit_counts_wherever_it_is(place, limit, tmp_path):
    files = {
        "system.slice/condconv.service/memory.max": "max\n",
        "system.slice/memory.max": "1000\n",
        "system.slice/cpu.max": "max 100000\n",
        "memory.max": "max\n",
        f"{place}memory.max": "900\n",
        f"{place}cpu.max": "50000 100000\n",
    }
    process = write_process(tmp_path, files=files, groups=SERVICE)
    assert memory_limit(process) == 900
    assert available_cores(process) == 1


def test_version_1_nests_too(tmp_path):
    files = {
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/a/memory.limit_in_bytes": "800\n",
        "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
    }
    groups = "5:memory:/a/b\n3:cpu,cpuacct:/a/b\n"
    process = write_process(tmp_path, files=files, groups=groups, mounts=VERSION_1)
    assert memory_limit(process) == 800
    assert available_cores(process) == 1


def test_a_real_group_within_a_limited_one():
    limit = 1 << 30
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from condconv_serve.machine.memory import memory_limit; print(memory_limit())"
    )
    with group_within_a_limited_one(limit) as inner:
        said = subprocess.run(
            [sys.executable, "-c", script, inner / "cgroup.procs"], capture_output=True, text=True, check=True
        )
    assert int(said.stdout) == limit
