import pytest

from condconv_serve.machine import cores as cores_module


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
    monkeypatch.setattr(cores_module, "_CGROUP", tmp_path)
    monkeypatch.setattr(cores_module, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cores_module.available_cores() == cores


def test_siblings_count_once(tmp_path, monkeypatch):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(cores_module, "_CGROUP", tmp_path)
    monkeypatch.setattr(cores_module, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr(cores_module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert cores_module.available_cores() == 2
