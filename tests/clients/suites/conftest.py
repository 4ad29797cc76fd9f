"""What all suites have. Each one runs in a process of its own: most clients bring messages of the same names.

The test of a hundred photos waits until all suites have loaded their clients, and then all ask at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.given import Given

PATIENCE = 180.0


@pytest.fixture(scope="session")
def folder() -> Path:
    """What `tests.clients.test_clients` gives to all suites, and gets from them."""
    return Path(os.environ["CLIENTS_FOLDER"])


@pytest.fixture(scope="session")
def given(folder: Path) -> Given:
    return Given.load(folder)


@pytest.fixture(scope="session")
def at_once(folder: Path) -> Iterator[None]:
    """From here on all suites ask together; how long this one did is noted."""
    suite = os.environ["CLIENTS_SUITE"]
    (folder / f"{suite}.ready").touch()
    deadline = time.monotonic() + PATIENCE
    while not (folder / "go").exists():
        assert time.monotonic() < deadline, "the other suites don't come"
        time.sleep(0.01)
    began = time.monotonic()
    yield
    (folder / f"{suite}.asked").write_text(json.dumps([began, time.monotonic()]))


@pytest.fixture
def agrees(given: Given, at_once: None) -> Callable[[Callable[[bytes], Any]], None]:
    """Asks for each of the photos alone, and compares the answers' probabilities with those of `/predict`."""

    def check(ask: Callable[[bytes], Any]) -> None:
        given.check(np.array([ask(photo) for photo in given.photos], np.float64))

    return check
