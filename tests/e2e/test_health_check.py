"""The container's health check, run against a server beside it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import ROOT, Server, environment, wait_for

SCRIPT = ROOT / "deploy/docker/healthcheck.py"
CLOSED = 1
"""A port at which nobody listens."""


def check(**ports: int) -> int:
    """Run the check as the container would; returns its exit code."""
    return subprocess.run(
        [sys.executable, SCRIPT], env=environment(**ports), capture_output=True, timeout=60
    ).returncode


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The check as a module; `answers` is what it gets to its questions, `ended` what it has ended."""
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.answers, module.ended = [], []

    def ask() -> int:
        answer = module.answers.pop(0)
        if answer is None:
            raise TimeoutError("timed out")
        return int(answer)

    monkeypatch.setattr(module, "SILENT", tmp_path / "silent")
    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "end_server", lambda: module.ended.append("server"))
    return module


def test_it_asks_the_metrics_port_where_there_is_one() -> None:
    """All connections of the main port may be taken, and that is no reason to restart the container."""
    with Server(metrics_port=0) as server:
        found = re.search(r"metrics and probes on http://\S+:(\d+)", server.log)
        assert found
        metrics_port, port = int(found[1]), server.address[1]
        # One check waits 4 seconds, and a busy machine may stand still for longer.
        wait_for(lambda: check(port=CLOSED, metrics_port=metrics_port) == 0)
        wait_for(lambda: check(port=port) == 0)
        assert check(port=port, metrics_port=CLOSED) != 0


@pytest.mark.parametrize(
    ("answers", "ended"),
    [
        ([200, None, None, None], 1),
        ([200, None, None, 200, None, None], 0),
        # It isn't ready, and says so: a restart would only load its models again.
        ([503] * 9, 0),
        ([200, 503, None, None, None], 1),
        # It starts: nobody has heard from it yet.
        ([None] * 9, 0),
        # Ended once, and again only if it hangs again.
        ([200, *[None] * 9], 1),
        ([200, None, None, None, None, 200, None, None, None], 2),
    ],
    ids=str,
)
def test_a_server_that_hangs_is_ended(script: Any, answers: list[int | None], ended: int) -> None:
    script.answers = list(answers)
    assert [script.main(3) for _ in answers] == [int(answer != 200) for answer in answers]
    assert len(script.ended) == ended


def test_without_being_told_to_it_ends_nothing(script: Any) -> None:
    script.answers = [200, *[None] * 9]
    for _ in range(10):
        script.main(None)
    assert script.ended == []
    assert not script.SILENT.exists()


def test_it_ends_the_children_of_a_containers_first_process_only() -> None:
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Here the first process is no engine's.
    assert module.end_server() == []
    # A shell that stands in for one, with a child that hangs and doesn't listen to anybody.
    parent = subprocess.Popen(
        ["bash", "-c", "(trap '' TERM; kill -STOP $BASHPID; sleep 99) & echo $!; wait $!; exit 7"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert module.end_server(parent.pid, of=("other",)) == []
    assert module.end_server(parent.pid, of=("bash",)) == [child]
    parent.communicate(timeout=30)
    assert parent.returncode == 7
