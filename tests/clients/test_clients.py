"""The clients that others have, at one real server: what they get is what `/predict` says, and so are their errors.

Each client has a suite in `suites/`, in its own words. All of them run at once, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.given import Given
from tests.e2e.server import PATIENCE, ROOT, environment, wait_for

FOLDER = Path(__file__).parent / "suites"
SUITES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "conftest")
pytestmark = pytest.mark.clients


@dataclass(frozen=True)
class Ended:
    """How a suite ended, what it printed, and when it began to ask for the photos and had all answers."""

    code: int
    said: str
    asked: tuple[float, float] | None


@pytest.fixture(scope="module")
def ended(clients: Path, given: Given, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Ended]:
    """How all suites ended, after they ran at once."""
    folder = tmp_path_factory.mktemp("given")
    given.save(folder)
    processes = {suite: start(suite, folder, clients) for suite in SUITES}
    try:
        wait_for(
            lambda: all(
                (folder / f"{suite}.ready").exists() or process.poll() is not None
                for suite, process in processes.items()
            )
        )
        (folder / "go").touch()
        return {suite: end(suite, process, folder) for suite, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def start(suite: str, folder: Path, clients: Path) -> subprocess.Popen[bytes]:
    variables = environment() | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "service"), str(ROOT))),
        "CLIENTS_FOLDER": str(folder),
        "CLIENTS_SUITE": suite,
    }
    # The clients' own warnings are not ours to mend.
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-o", "filterwarnings=default"]
    with (folder / f"{suite}.log").open("wb") as log:
        return subprocess.Popen(
            [clients / "bin" / "python", "-m", "pytest", *options, FOLDER / f"{suite}.py"],
            env=variables, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def end(suite: str, process: subprocess.Popen[bytes], folder: Path) -> Ended:
    code, asked = process.wait(PATIENCE), folder / f"{suite}.asked"
    said = (folder / f"{suite}.log").read_text(errors="replace")
    return Ended(code, said, tuple(json.loads(asked.read_text())) if asked.exists() else None)


@pytest.mark.parametrize("suite", SUITES)
def test_a_client(ended: Mapping[str, Ended], suite: str) -> None:
    found = ended[suite]
    print(found.said)
    assert found.code == 0, found.said
    assert found.asked is not None, "it asked for no photos"


def test_all_asked_at_the_same_time(ended: Mapping[str, Ended]) -> None:
    asked = [found.asked for found in ended.values() if found.asked is not None]
    assert len(asked) == len(SUITES)
    assert max(began for began, _ in asked) < min(ended for _, ended in asked)
