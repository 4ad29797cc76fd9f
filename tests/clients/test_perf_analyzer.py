"""Triton's load generator runs to the end, and reads our statistics."""

from __future__ import annotations

import base64
import csv
import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.given import Given
from tests.clients.newer_libraries import command

pytestmark = pytest.mark.clients
REQUESTS = 60
COLUMNS = ("Server Queue", "Server Compute Input", "Server Compute Infer")


@pytest.fixture(scope="module")
def perf_analyzer(clients: Path) -> list[str]:
    program = clients / "load" / "perf_analyzer" / "bin" / "perf_analyzer"
    if not program.exists():
        pytest.skip("the package perf-analyzer could not be installed")
    program.chmod(0o755)
    return command(program)


def as_image(photo: bytes) -> dict[str, object]:
    """Elements of BYTES stand behind their length in its files, too."""
    return {"image": {"content": {"b64": _base64(len(photo).to_bytes(4, "little") + photo)}, "shape": [1]}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("kind", ["image", "pixels"])
def test_it_runs_to_the_end(perf_analyzer: list[str], given: Given, tmp_path: Path, protocol: str, kind: str) -> None:
    steps = [
        as_image(photo)
        if kind == "image"
        else {"pixels": {"content": {"b64": _base64(row.tobytes())}, "shape": [1, *row.shape]}}
        for photo, row in zip(given.photos[:8], given.pixels[:8], strict=True)
    ]
    (tmp_path / "data.json").write_text(json.dumps({"data": steps}))
    options = {
        "-m": given.model,
        "-u": getattr(given, protocol),
        "-i": protocol,
        "--input-data": "data.json",
        "--concurrency-range": "4",
        "--request-count": str(REQUESTS),
        "-f": "found.csv",
    }
    words = [*perf_analyzer, *(word for pair in options.items() for word in pair)]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    print(ran.stdout, ran.stderr)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    with (tmp_path / "found.csv").open() as file:
        (found,) = csv.DictReader(file)
    assert float(found["Inferences/Second"]) > 0
    assert f"Successful request count: {REQUESTS}" in ran.stdout, "our statistics tell the same number"
    assert all(float(found[name]) >= 0 for name in COLUMNS)
    assert float(found["Server Compute Infer"]) > 100, "microseconds"
