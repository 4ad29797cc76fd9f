"""Trains one detector for `trade_off.py` with the product's own command, and measures it on test photos."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trade_off_training import Run

from condconv_serve.nn import cost
from condconv_serve.runtime.loading import load_network
from condconv_serve.store import open_bundle

VERSION = "1"


def train(run: Run, data: Path, work: Path, *, weights: Path | None) -> dict[str, Any]:
    """Train a detector and measure its average precision on the test photos.

    The epoch is chosen by the validation photos, in the same way for both twins. A run that was ended goes on.

    Args:
        run: what to train.
        data: has `train.json`, `val.json` and `test.json`, in COCO's format, with the photos beside them.
        work: keeps bundles, and the state of a run that isn't finished.
        weights: the file that `run.weights` names; detectors start from published weights.

    Returns:
        Test photos, average precisions, seconds of training in this session, and the cost.
    """
    if weights is None:
        raise SystemExit(f"{run.network}: a detector starts from published weights; give --network NAME:WIDTH=FILE.")
    store = work / "store"
    backbone = f"{run.network}-{run.width:g}"
    if not (store / backbone / VERSION).exists():
        width = f"width_coefficient={run.width}"
        condconv("import", weights, "--architecture", run.network, "--override", width, "--name", backbone, store=store)
    name = f"{run.title}-{run.image_size}px-{run.epochs}-epochs".replace(".", "_")
    began = time.monotonic()
    if not (store / name / VERSION).exists():
        photos = ("--data", data, "--annotations", data / "train.json", "--validation-annotations", data / "val.json")
        budget = ("--epochs", run.epochs, "--batch-size", run.batch_size, "--learning-rate", run.learning_rate)
        experts = ("--experts", run.experts) if run.experts else ()
        condconv(
            *("finetune", backbone, "--task", "detection", "--name", name, "--resume", "--seed", run.seed),
            *("--image-size", run.image_size, *photos, *budget, *experts),
            store=store,
        )
    seconds = time.monotonic() - began
    said = condconv("evaluate", name, data, "--annotations", data / "test.json", "--json", store=store)
    quality = json.loads(said)
    found = cost(load_network(open_bundle(store / name / VERSION)))
    return {
        "images": quality["images"],
        **{key: quality[key] for key in ("ap", "ap50", "ap75")},
        "seconds": round(seconds, 1),
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
    }


def condconv(*arguments: object, store: Path) -> str:
    """Run `condconv models` and return what it prints; what it reports goes to the terminal."""
    command = [sys.executable, "-m", "condconv_serve", "models", *map(str, arguments), "--model-store", str(store)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
