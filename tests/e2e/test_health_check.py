"""The container's health check, run against a server beside it."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.e2e.server import ROOT, Server, environment

CLOSED = 1
"""A port at which nobody listens."""


def check(**ports: int) -> int:
    """Run the check as the container would; returns its exit code."""
    script = ROOT / "deploy" / "docker" / "healthcheck.py"
    return subprocess.run(
        [sys.executable, script], env=environment(**ports), capture_output=True, timeout=60
    ).returncode


def test_it_asks_the_metrics_port_where_there_is_one() -> None:
    """All connections of the main port may be taken, and that is no reason to restart the container."""
    with Server(metrics_port=0) as server:
        found = re.search(r"metrics and probes on http://\S+:(\d+)", server.log)
        assert found
        metrics_port, port = int(found[1]), server.address[1]
        assert check(port=CLOSED, metrics_port=metrics_port) == 0
        assert check(port=port) == 0
        assert check(port=port, metrics_port=CLOSED) != 0
