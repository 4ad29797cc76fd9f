"""The example for Ray Data answers a small folder with a server, and says which photos failed."""

import os
import subprocess
import sys

import pytest

from tests import pictures
from tests.e2e.server import ROOT, Server

pytest.importorskip("ray.data", reason="it needs Ray Data: pip install 'ray[data]'", exc_type=ImportError)
parquet = pytest.importorskip("pyarrow.parquet", reason="it reads Parquet: pip install pyarrow")
pytestmark = pytest.mark.examples


def test_a_folder_becomes_parquet(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number in range(20):
        photo = pictures.jpeg(pictures.photo("coffee", (60 + number, 60)))
        (tmp_path / "photos" / "more" / f"{number}.jpg").write_bytes(photo if number else b"no image")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDCONV_")}
    environment |= {"PYTHONPATH": os.pathsep.join((str(ROOT / "service"), str(ROOT))), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_ADDRESS": "local"}  # a cluster of its own, whichever runs here
    command = [sys.executable, ROOT / "examples" / "ray_data.py", tmp_path / "photos", tmp_path / "out"]
    with Server() as server:
        options = ("--server", server.url, "--batch-size", "4", "--actors", "1")
        done = subprocess.run(
            [*map(str, command), *options], env=environment, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "20 photos, 1 failed"
    rows = parquet.read_table(tmp_path / "out").to_pylist()
    assert {row["path"].rpartition("/")[2] for row in rows} == {f"{number}.jpg" for number in range(20)}
    (failed,) = (row for row in rows if row["error"])
    assert (failed["path"].endswith("/0.jpg"), failed["error"], failed["label"]) == (True, "unsupported_image", None)
    assert all(row["label"] and row["model"].endswith("/1") for row in rows if not row["error"])
