"""Small bundles, and the one that comes with the project."""

import functools
import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from condconv_serve.domain import Label, NativeUse
from condconv_serve.domain.manifest import Accuracy, PreprocessingSpec, Provenance
from condconv_serve.runtime.plan import EnginePlan
from condconv_serve.store import NewBundle, open_bundle, read_labels, read_weights

STORE = Path(__file__).parents[3] / "model_store"
DEFAULT = STORE / "efficientnet-lite0-condconv-4e" / "1"
PLAN = EnginePlan(
    device="cpu",
    devices=("CPU",),
    precision="float32",
    engine="tensorflow",
    reason="it was asked for",
    fallback=False,
    native="off",
    native_use=NativeUse(reason="they were switched off"),
    streams=1,
    threads_per_stream=1,
    max_batch_size=2,
)
LABELS = (Label(0, "tench", "n01440764"), Label(1, "Ümläut"), Label(2, "espresso", "n07920052"))


def new_bundle(**changes):
    """What a bundle of three classes is made of; the weights fit no network."""
    given = {
        "name": "small",
        "version": "1",
        "architecture": {"name": "efficientnet-lite0-condconv-4e", "num_classes": 3},
        "preprocessing": PreprocessingSpec(
            transform="pillow", image_size=64, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
        ),
        "weights": {
            "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
            "a/half": np.arange(5, dtype=np.float16),
        },
        "labels": LABELS,
        "provenance": Provenance(source="here", method="made up"),
        "licence": "MIT",
        "model_card": "# Small\n\nNot for use.\n",
        "accuracy": (Accuracy(dataset="none", images=9, transform="pillow", top1=0.5),),
    }
    return NewBundle(**given | changes)


def read_all(path):
    """Read what a bundle holds, checks and all."""
    opened = open_bundle(path)
    read_labels(opened)
    read_weights(opened)


def rewrite(path, **changes):
    """Change fields of a bundle's manifest; None removes one."""
    file = path / "manifest.json"
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def replace_file(path, name, content):
    """Change a file of a bundle, and the manifest with it."""
    (path / name).write_bytes(content)
    files = json.loads((path / "manifest.json").read_text())["files"]
    files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(path, files=files)


@functools.cache
def default_model():
    """The project's own model, loaded once for all tests."""
    from condconv_serve.runtime.loading import load_model

    return load_model(open_bundle(DEFAULT), PLAN)


def of_float8():
    """A file of numbers that NumPy doesn't know."""
    header = json.dumps({"kernel": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2)
