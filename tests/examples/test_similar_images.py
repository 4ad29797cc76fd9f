"""`examples/similar_images.py`: photos of the same thing find each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.server import ROOT

pytestmark = pytest.mark.examples


def similar(file: Path, *options: str) -> list[str]:
    command = [sys.executable, str(ROOT / "examples" / "similar_images.py"), str(file), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def features(path: Path, rows: dict[str, list[float] | None]) -> Path:
    """A file as the server writes it; None for an image that failed."""
    np.savez(
        path,
        features=np.array([[np.nan] * 2 if row is None else row for row in rows.values()], np.float32),
        filenames=np.array(list(rows)),
        errors=np.array(["" if row else "corrupt_image" for row in rows.values()]),
    )
    return path


def test_directions_count_and_lengths_do_not(tmp_path: Path) -> None:
    file = features(
        tmp_path / "f.npz",
        {"photos/east.jpg": [1, 0], "photos/far-east.jpg": [9, 1], "bad.jpg": None, "north.jpg": [0, 5]},
    )
    assert similar(file, "--neighbours", "1") == [
        "east.jpg      0.99 far-east.jpg",
        "far-east.jpg  0.99 east.jpg",
        "north.jpg     0.11 far-east.jpg",
    ]
    assert similar(file)[0] == "east.jpg      0.99 far-east.jpg, 0.00 north.jpg"


def test_few_images(tmp_path: Path) -> None:
    assert similar(features(tmp_path / "one.npz", {"one.jpg": [1, 2]})) == ["one.jpg  no other image"]
    assert similar(features(tmp_path / "none.npz", {"bad.jpg": None})) == []
