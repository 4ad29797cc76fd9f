"""How many fronts `auto` means, and where they count."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest

from condconv_serve.cluster.workers.directories import directory_for_metrics
from condconv_serve.cluster.workers.fronts import count_fronts


@pytest.mark.parametrize(
    ("workers", "cores", "device", "fronts"),
    [
        (1, 64, None, 1),
        (5, 2, None, 5),
        ("auto", 2, None, 1),
        ("auto", 15, None, 1),
        ("auto", 16, None, 2),
        ("auto", 64, None, 8),
        ("auto", 2, "nvidia0", 1),
        ("auto", 32, "nvidia0", 8),
        ("auto", 32, "vfio/0", 8),
    ],
)
def test_auto_depends_on_cores_and_accelerators(
    workers: int | Literal["auto"], cores: int, device: str | None, fronts: int, tmp_path: Path
) -> None:
    if device is not None:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    assert count_fronts(workers, cores=cores, devices=tmp_path) == fronts


def test_the_directory_goes_with_its_server_and_those_of_killed_ones_too(tmp_path: Path) -> None:
    left = tmp_path / f"condconv-metrics-{os.getpid()}-a"  # of an earlier process with this number
    left.mkdir()
    (left / "counter.db").touch()
    (tmp_path / "something-else").mkdir()
    with directory_for_metrics(tmp_path) as made:
        assert made.stat().st_mode & 0o777 == 0o700
        assert not left.exists()
    assert not made.exists()
    assert (tmp_path / "something-else").exists()


def test_the_directory_of_a_server_in_another_container_stays(tmp_path: Path) -> None:
    """Containers may share /dev/shm, but not the numbers of their processes. So those say nothing."""
    with directory_for_metrics(tmp_path) as made:
        ended = subprocess.Popen(["true"])
        ended.wait()
        elsewhere = made.rename(tmp_path / f"condconv-metrics-{ended.pid}-a")
        with directory_for_metrics(tmp_path):
            assert elsewhere.exists()
        elsewhere.rename(made)


def test_a_directory_that_is_taken_for_a_left_one_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_late(*arguments: Any, **options: Any) -> str:
        made = make(*arguments, **options)
        monkeypatch.undo()
        with directory_for_metrics(tmp_path):
            return made

    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", made_late)
    with directory_for_metrics(tmp_path) as made:
        assert made.exists()
        with directory_for_metrics(tmp_path):
            assert made.exists()
