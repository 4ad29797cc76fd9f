"""The server reports to nobody: no library in it calls home, or forks a process to do so."""

from __future__ import annotations

from pathlib import Path

from condconv_serve.samples import SAMPLES
from tests.e2e.server import Server

RECORDER = """
import os, sys

def record(event, arguments):
    if event in ("os.fork", "os.forkpty", "socket.getaddrinfo", "socket.connect", "socket.sendto"):
        with open(os.environ["RECORD"], "a") as file:
            file.write(f"{event} {arguments}\\n")

sys.addaudithook(record)
"""


def test_no_fork_no_look_up_no_connection(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    record = tmp_path / "record"
    record.write_text("")
    # A home in which nobody has refused anything yet, and no sign of tests, which some libraries spare.
    variables = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "RECORD": str(record), "CI": "false"}
    with Server(variables=variables) as server:
        response = server.client.post("/predict", content=SAMPLES[0].read_bytes())
        assert response.status_code == 200
    assert record.read_text() == ""
