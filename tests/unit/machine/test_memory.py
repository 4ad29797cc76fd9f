import gc
import subprocess
import sys

import pytest

from condconv_serve.machine import memory
from tests.unit.machine.processes import GROUPS, MOUNTS, write_process

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
