"""Small models whose versions can be told apart: version `v` answers every image with class `v % CLASSES`.

And a small copy of the project's model.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from condconv_serve.domain import Label
from condconv_serve.domain.manifest import PreprocessingSpec, Provenance
from condconv_serve.store import NewBundle, open_bundle, read_labels, read_profile, read_weights, write_bundle
from condconv_serve.store.default import set_default

CLASSES = 16
_SMALL: dict[str, Any] = {"num_classes": CLASSES, "width_coefficient": 0.1, "depth_coefficient": 0.3}
_ARCHITECTURE = {"name": "efficientnet-lite0-condconv-4e", **_SMALL}


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    from condconv_serve.nn import build_network, get_architecture

    network = build_network(get_architecture(_ARCHITECTURE["name"], **_SMALL), input_size=32)
    return {variable.path: np.asarray(variable) for variable in network.weights}


def write_fake(store: Path, name: str, version: int) -> Path:
    """Write one version for a server without TensorFlow, with no weights but those that it looks at."""
    routing = {f"block_{block}_routing/bias": np.zeros(4, np.float32) for block in (4, 5)}
    return _write(store, name, version, routing)


def write_tiny(store: Path, name: str, version: int) -> Path:
    """Write one version of a tiny network, for real servers; this needs TensorFlow."""
    return _write(store, name, version, _weights())


@functools.cache
def light_store(bundle: Path) -> Path:
    """A store with a bundle's copy for fake servers, which has none of the weights that they don't look at."""
    store = Path(tempfile.mkdtemp(prefix="light-store-"))
    atexit.register(shutil.rmtree, store)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    looked_at = ("logits/bias", "_routing/bias")
    write_bundle(
        store,
        NewBundle(
            name=manifest.name,
            version=manifest.version,
            architecture=manifest.architecture.model_dump(),
            preprocessing=manifest.preprocessing,
            weights={path: tensor for path, tensor in read_weights(opened).items() if path.endswith(looked_at)},
            labels=read_labels(opened),
            provenance=manifest.provenance,
            licence=manifest.licence,
            model_card=opened.model_card,
            accuracy=manifest.accuracy,
            routing_profile=read_profile(opened),
        ),
    )
    set_default(store, manifest.name)
    return store


def write_colour_detector(
    store: Path, *, name: str = "colours", version: str = "1", preprocessing: PreprocessingSpec | None = None
) -> Path:
    """A detector's bundle for fake servers, which find what is red, green, or blue (`fakes.ColourDetector`).

    Its rows are whole photos, stretched to 64 x 64 pixels, unless you say otherwise.
    """
    preprocessing = preprocessing or PreprocessingSpec(
        transform="stretch", image_size=64, interpolation="bilinear", mean=(127.5,) * 3, std=(127.5,) * 3
    )
    return write_bundle(
        store,
        NewBundle(
            task="detection",
            name=name,
            version=version,
            architecture={"name": "ssd"},
            preprocessing=preprocessing,
            weights={f"block_{number}_routing/bias": np.zeros(3, np.float32) for number in (1, 2)},
            labels=[Label(0, "red"), Label(1, "green", "n1"), Label(2, "blue")],
            provenance=Provenance(source="tests", method="made up"),
            licence="Apache-2.0",
            model_card="# Colours\n",
        ),
    )


def _write(store: Path, name: str, version: int, weights: Mapping[str, np.ndarray]) -> Path:
    bias = np.full(CLASSES, -50, np.float32)
    bias[version % CLASSES] = 50
    return write_bundle(
        store,
        NewBundle(
            name=name,
            version=str(version),
            architecture=_ARCHITECTURE,
            preprocessing=PreprocessingSpec(
                transform="pillow", image_size=32, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
            ),
            weights={**weights, "logits/bias": bias},
            labels=[Label(i, f"class {i}") for i in range(CLASSES)],
            provenance=Provenance(source="tests", method="one class for all images"),
            licence="Apache-2.0",
            model_card="# Tiny\n",
        ),
    )


def answered_by(response: Any) -> str:
    """The version that answered; all images of the response must have been answered by it."""
    assert response.status_code == 200, response.text
    body = response.json()
    version = body["model"]["version"]
    for entry in body["predictions"]:
        assert "error" not in entry, entry
        assert entry["classes"][0]["index"] == int(version) % CLASSES, body
    return str(version)
