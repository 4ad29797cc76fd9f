"""A real server with its model's copy beside it, and what `/predict` says of a hundred photos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from condconv_serve.imaging import make_row
from condconv_serve.store import open_bundle, read_labels
from condconv_serve.store.default import set_default
from tests.clients.given import DETECTOR, Given
from tests.clients.photos import photos
from tests.e2e.server import BUNDLE, MODEL, PATIENCE, Server, probabilities
from tests.e2e.tiny_models import write_colour_detector

OTHER = "other"
"""The copy, which tests may load and unload."""


@pytest.fixture(scope="session")
def clients() -> Path:
    """The environment of the clients."""
    named = os.environ.get("CLIENTS_VENV")
    if not named:
        pytest.skip("make test-clients installs the clients, and says where")
    return Path(named)


@pytest.fixture(scope="session")
def real_server(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(BUNDLE, store / MODEL / "1")
    other = shutil.copytree(BUNDLE, store / OTHER / "1")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": OTHER}))
    set_default(store, MODEL)
    with Server(real=True, engine="auto", model_store=store, grpc_port=0, request_timeout=PATIENCE) as running:
        yield running


@pytest.fixture(scope="session")
def detectors(clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose network is a stand-in: what counts here is how its answers look."""
    write_colour_detector(store := tmp_path_factory.mktemp("detectors"), name=DETECTOR)
    with Server(model_store=store, grpc_port=0, request_timeout=PATIENCE) as running:
        yield running


@pytest.fixture(scope="session")
def given(real_server: Server, detectors: Server) -> Given:
    bundle = open_bundle(BUNDLE)
    preprocessing = bundle.manifest.preprocessing.to_domain()
    asked = photos()
    with httpx.Client(base_url=real_server.url, timeout=PATIENCE) as client:
        expected = [probabilities(client.post("/predict?top_k=1000", content=photo))[0] for photo in asked]
    return Given(
        http=real_server.url.removeprefix("http://"),
        grpc=real_server.grpc,
        model=MODEL,
        labels=[label.label for label in read_labels(bundle)],
        photos=asked,
        pixels=np.stack([make_row(photo, preprocessing, max_pixels=10**8).row for photo in asked]),
        expected=np.array(expected),
        detectors_http=detectors.url.removeprefix("http://"),
        detectors_grpc=detectors.grpc,
    )
