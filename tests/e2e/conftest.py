from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests import pictures
from tests.e2e.server import Server

BODY_LIMIT = 8 * 2**20


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for all tests that leave it as it was; afterwards it must end well, without a traceback in its log."""
    with Server(max_body_bytes=BODY_LIMIT, engine="auto") as running:
        yield running


@pytest.fixture
def client(server: Server) -> httpx.Client:
    return server.client


@pytest.fixture(scope="session")
def coffee() -> bytes:
    """A photograph that the model is sure of, as a small JPEG."""
    return pictures.jpeg(pictures.photo("coffee", (300, 200)))


@pytest.fixture(scope="session")
def cat() -> bytes:
    """Another one."""
    return pictures.jpeg(pictures.photo("cat", (300, 200)))
