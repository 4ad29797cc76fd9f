import os
import subprocess
import sys

import pytest

from service.runtime import machine

USES_ONEDNN = """
import service, tensorflow
from tensorflow.python.util._pywrap_util_port import IsMklEnabled
print(IsMklEnabled())
"""

# As many objects as some hundred waiting requests have, each of which lives for a while; and cycles, which only the
# collector can find.
WAITS_AND_GOES = """
import gc, weakref
from service.runtime.machine import calm_garbage_collection

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
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_container_limits_count(files, cores, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.available_cores() == cores


def test_siblings_count_once(tmp_path, monkeypatch):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.available_cores() == 2


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
def test_the_containers_memory_is_all_there_is(files, limit, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    pages = machine.os.sysconf("SC_PHYS_PAGES") * machine.os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_limit() == (limit or pages)


@pytest.mark.parametrize(("setting", "uses"), [(None, "True"), ("0", "False")])
def test_tensorflow_uses_onednn_on_any_cpu_unless_told_otherwise(setting, uses):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if setting is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = setting
    command = [sys.executable, "-c", USES_ONEDNN]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.strip() == uses


def test_requests_that_wait_are_not_searched_for_garbage_again_and_again():
    said = subprocess.run([sys.executable, "-c", WAITS_AND_GOES], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["0", "True"]
