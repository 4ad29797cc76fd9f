"""What signals do to a server besides ending it, and one that comes early."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from condconv_serve.fronts.keys import new_key
from tests.e2e.live import MODEL
from tests.e2e.server import BUNDLE, PATIENCE, ROOT, Server, environment, wait_for
from tests.e2e.tiny_models import light_store, write_fake

READ_AGAIN = "1 API keys read again"
NO_STORE = "the model store can't be read"
ENDED_AS_IT_LISTENS = """
import os, signal, sys
from condconv_serve import serve
from tests.contract import fake_server

serve.log_ports = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
sys.argv[1:] = ["serve", "--port", "0"]
fake_server.run()
"""


def write_keys(file: Path, name: str) -> None:
    _, key = new_key(name)
    file.write_text(json.dumps({"keys": [key.model_dump(exclude_none=True)]}))


def test_sighup_looks_at_keys_and_store_again(tmp_path: Path) -> None:
    """Nobody asks with a key meanwhile, and what was tried in vain is tried anew."""
    keys, store = tmp_path / "keys.json", tmp_path / "store"
    write_keys(keys, "first")
    write_fake(store, MODEL, 1)
    with Server(model_store=store, api_keys_file=keys) as server:
        write_keys(keys, "second")
        server.tell(signal.SIGHUP)
        wait_for(lambda: f"{READ_AGAIN}: second" in server.log)
        shutil.move(store, tmp_path / "away")
        seen = server.log.count(NO_STORE)
        server.tell(signal.SIGHUP)
        # It is said of the change itself, too, so not only after the signal.
        wait_for(lambda: server.log.count("SIGHUP: looking at the API keys and the model store again") == 2)
        wait_for(lambda: server.log.count(NO_STORE) > seen)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            server.tell(number)
            wait_for(lambda number=number: f"{number.name} is ignored" in server.log)  # type: ignore[misc]
        assert server.is_ready()


def test_a_body_that_is_incomplete_when_the_time_is_over_is_answered() -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    with Server(shutdown_timeout=2) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as connected:
            connected.sendall(head)
            assert connected.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n", "it waits for the body"
            connected.sendall(b"123")
            server.terminate()
            received = b""
            while more := connected.recv(65536):
                received += more
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head.lower()
        assert json.loads(body)["slug"] == "draining"
        assert server.wait() == 0


def test_whoever_reads_that_it_listens_may_end_it_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_AS_IT_LISTENS],
        env=environment(workers=1, model_store=light_store(BUNDLE)),
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_drain_that_takes_all_of_the_time_ends_without_an_error() -> None:
    with Server(drain_delay=1, shutdown_timeout=1) as server:
        assert server.client.get("/livez").status_code == 200
        server.client.close()
        assert server.stop() == 0
        assert " ERROR " not in server.log
