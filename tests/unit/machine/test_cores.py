import pytest

from condconv_serve.machine import cores as cores_module
from tests.unit.machine.processes import GROUPS, MOUNTS, write_process


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
    process = write_process(tmp_path, files=files, groups=GROUPS, mounts=MOUNTS)
    monkeypatch.setattr(cores_module, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cores_module.available_cores(process) == cores


def test_siblings_count_once(tmp_path, monkeypatch):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    process = write_process(tmp_path, files={})
    monkeypatch.setattr(cores_module, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cores_module.available_cores(process) == 2
