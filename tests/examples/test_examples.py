"""The examples run as they stand, only shorter; and what they write is served over HTTP."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from condconv_serve.store import open_bundle
from tests.e2e.server import ROOT, Server

pytest.importorskip("sklearn", reason="the examples' data set comes with scikit-learn")
pytestmark = pytest.mark.examples
EXAMPLES = ROOT / "examples"


def run_example(name, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CONDCONV_")}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_digits(directory, **options):
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_digits(directory, **options)


def accuracy(text, name):
    start, best = re.search(rf"^{name}: accuracy ([\d.]+)% -> ([\d.]+)%", text, re.M).groups()
    return float(start), float(best)


def between_digits(text, name):
    lines = re.search(rf"^{name}: .*\n((?:  block.*\n)*)", text, re.M)[1].splitlines()
    found = [re.search(r"between digits ([\d.]+)% -> ([\d.]+)%", line).groups() for line in lines]
    return [(float(start), float(best)) for start, best in found]


def test_a_network_of_ones_own_is_served(tmp_path):
    store = tmp_path / "models"
    printed = run_example("own_network.py", store, "--epochs", 3)
    final = float(re.findall(r"val_accuracy: ([\d.]+)", printed)[-1])
    _, test = write_digits(tmp_path / "digits")
    wanted = [digit for digit in range(10) for _ in range(3)]
    images = [file for digit in range(10) for file in sorted((test / str(digit)).iterdir())[:3]]
    with Server(real=True, model_store=store) as server:
        (model,) = server.client.get("/models").json()["models"]
        assert (model["name"], model["architecture"], model["num_experts"]) == ("digits", "keras", 4)
        described = server.client.get("/models/digits").json()
        assert described["routing_blocks"] == ["first", "second"]
        answer = server.client.post(
            "/predict?routing=true&top_k=1", files=[("image", (file.name, file.read_bytes())) for file in images]
        ).json()
    entries = answer["predictions"]
    assert all(
        {name: len(weights) for name, weights in e["routing"].items()} == {"first": 4, "second": 2} for e in entries
    )
    right = sum(int(e["classes"][0]["label"]) == digit for e, digit in zip(entries, wanted, strict=True))
    assert right / 30 > final - 0.25, "the server answers as fit's validation did"


def test_an_upcycled_network_beats_its_start_and_routes_digits_apart(tmp_path):
    store = tmp_path / "models"
    less = ("--static-epochs", 2, "--epochs", 3, "--depth", 0.25, "--no-comparison")
    printed = run_example("finetune_digits.py", store, *less)
    start, best = accuracy(printed, "upcycled")
    assert best > start
    shares = between_digits(printed, "upcycled")
    assert len(shares) == 3
    assert all(start == 0 for start, _ in shares)
    # By chance 9 of 359 degrees of freedom, 2.5 %.
    assert sum(best > 10 for _, best in shares) >= 2
    manifest = open_bundle(Path(store) / "upcycled-tuned" / "1").manifest
    assert manifest.architecture.overrides["width_coefficient"] == 0.25
    assert manifest.provenance.source == "upcycled/1"
    assert manifest.accuracy[0].images == 360
