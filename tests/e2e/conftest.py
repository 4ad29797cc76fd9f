from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests import pictures
from tests.e2e.server import RunningServer, Server
from tests.e2e.shared import SharedServer, shared_server

BODY_LIMIT = 8 * 2**20


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The one real server of all workers, for tests that leave it as it was and ask for true answers."""
    own = tmp_path_factory.getbasetemp()
    with shared_server((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared_server") as running:
        yield running


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Server]:
    """A server without TensorFlow, for tests that leave it as it was and look at what it counts or refuses."""
    with Server(max_body_bytes=BODY_LIMIT) as running:
        yield running


@pytest.fixture
def server(real_server: SharedServer) -> RunningServer:
    return real_server


@pytest.fixture
def client(server: RunningServer) -> httpx.Client:
    """For `server`, which modules may replace."""
    return server.client


@pytest.fixture(scope="session")
def coffee() -> bytes:
    """A photograph that the model is sure of, as a small JPEG."""
    return pictures.jpeg(pictures.photo("coffee", (300, 200)))


@pytest.fixture(scope="session")
def cat() -> bytes:
    """Another one."""
    return pictures.jpeg(pictures.photo("cat", (300, 200)))
