import gc
import subprocess
import sys

import pytest

from condconv_serve.machine import memory
from tests.unit.machine.processes import GROUPS, MOUNTS, group_within_a_limited_one, write_process

# As many objects as some hundred waiting requests have, each of which lives for a while; and cycles, which only the
# collector can find.
WAITS_AND_GOES = """
import gc, weakref
from condconv_serve.machine.memory import calm_garbage_collection

class Cycle:
    def __init__(self):
        self.me = self

calm_garbage_collection()
full = []
gc.callbacks.append(lambda phase, info: full.append(phase) if info["generation"] == 2 else None)
waiting, cycles = [], []
for _ in range(1000):
    waiting = [*waiting[-800:], [[] for _ in range(300)]]
    cycles.append(weakref.ref(Cycle()))
print(len(full), sum(cycle() is None for cycle in cycles) > 500)
"""


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1000000\n"}, 1_000_000),
        ({"memory/memory.limit_in_bytes": "2000000\n"}, 2_000_000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_the_containers_memory_is_all_there_is(files, limit, tmp_path):
    process = write_process(tmp_path, files=files, groups=GROUPS, mounts=MOUNTS)
    pages = memory.os.sysconf("SC_PHYS_PAGES") * memory.os.sysconf("SC_PAGE_SIZE")
    assert memory.memory_limit(process) == (limit or pages)


MEMORY_INFO = "MemTotal:  9000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n"


def stat(**fields):
    return "".join(f"{name} {value}\n" for name, value in fields.items())


@pytest.mark.parametrize(
    ("files", "left"),
    [
        # what the machine has is all that is known
        ({}, 5000 * 1024),
        ({"memory.max": "max\n", "memory.current": "700\n"}, 5000 * 1024),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n"}, 5000 * 1024),
        # the limit, less what is used
        ({"memory.max": "1000\n", "memory.current": "700\n"}, 300),
        ({"memory.max": "1000\n", "memory.current": "1100\n"}, 0),
        ({"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "700\n"}, 300),
        # a limit beyond which the group is slowed down counts, too
        ({"memory.max": "max\n", "memory.high": "900\n", "memory.current": "700\n"}, 200),
        ({"memory.max": "1000\n", "memory.high": "max\n", "memory.current": "700\n"}, 300),
        # files that are only kept in memory make room, but not the code that runs
        ({"memory.max": "1000\n", "memory.current": "700\n",
          "memory.stat": stat(anon=300, inactive_file=200, active_file=150, file_mapped=50, slab_reclaimable=7)}, 607),
        ({"memory.max": "1000\n", "memory.current": "700\n",
          "memory.stat": stat(inactive_file=20, active_file=10, file_mapped=50)}, 300),
        # version 1 counts the groups below by other names
        ({"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "700\n",
          "memory/memory.stat": stat(inactive_file=1, mapped_file=1, total_inactive_file=200, total_active_file=100,
                                     total_mapped_file=40)}, 560),
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "nonsense"}, 300),
    ],
)  # fmt: skip
def test_what_is_left(files, left, tmp_path):
    process = write_process(tmp_path, files=files, groups=GROUPS, mounts=MOUNTS)
    (tmp_path / "meminfo").write_text(MEMORY_INFO)
    assert memory.memory_left(process, tmp_path / "meminfo") == left


@pytest.mark.parametrize(("inner", "left"), [(200, 100), (50, 50)])
def test_the_group_that_leaves_least_counts(inner, left, tmp_path):
    files = {
        "a/memory.max": f"{inner + 300}\n",
        "a/memory.current": "300\n",
        "memory.max": "1000\n",
        "memory.current": "900\n",
    }
    process = write_process(tmp_path, files=files, groups="0::/a\n")
    assert memory.memory_left(process, tmp_path / "nothing") == left


def test_nothing_is_known_of_what_is_left(tmp_path):
    assert memory.memory_left(tmp_path, tmp_path / "meminfo") is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\n")
    assert memory.memory_left(tmp_path, tmp_path / "meminfo") is None


def test_what_a_process_uses(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\nThreads:\t1\n")
    assert memory.memory_use(tmp_path) == memory.MemoryUse(now=2000 * 1024, most=3000 * 1024)
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert memory.memory_use(tmp_path) is None
    assert memory.memory_use(tmp_path / "nowhere") is None


def test_what_is_left_in_a_real_group(tmp_path):
    """A process takes 200 MB, and reads a file of 100 MB, in a group that may use 600 MB."""
    (tmp_path / "large").write_bytes(bytes(100 * 2**20))
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from condconv_serve.machine.memory import memory_left\n"
        "before = memory_left(); kept = b'x' * (200 * 2**20); taken = memory_left()\n"
        "os.posix_fadvise((file := open(sys.argv[2], 'rb')).fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "while file.read(2**20): pass\n"
        "print(before, taken, memory_left())"
    )
    with group_within_a_limited_one(600 * 2**20) as inner:
        said = subprocess.run(
            [sys.executable, "-c", script, inner / "cgroup.procs", tmp_path / "large"],
            capture_output=True,
            text=True,
            check=True,
        )
    before, taken, read = (int(number) / 2**20 for number in said.stdout.split())
    assert 520 < before <= 600
    assert before - taken == pytest.approx(200, abs=10)
    assert read == pytest.approx(taken, abs=20), "a file that was only read takes nothing"


def test_requests_that_wait_are_not_searched_for_garbage_again_and_again():
    said = subprocess.run([sys.executable, "-c", WAITS_AND_GOES], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["0", "True"]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_goes_on_after_a_pause_if_it_went_before(enabled):
    def pause_and_fail():
        with memory.garbage_collection_paused():
            assert not gc.isenabled()
            raise KeyError

    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError):
            pause_and_fail()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
