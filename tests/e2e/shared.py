"""One real server for a whole test session, shared by all its workers.

Others may ask it at any time, so tests of what it counts have a server of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from condconv_serve.samples import SAMPLES
from condconv_serve.store.default import set_default
from tests.e2e.server import BUNDLE, MODEL, PATIENCE, RunningServer, Server, new_client, wait_for

OFFICIAL = f"{MODEL}-official"
"""The same model a second time, with the transform of the official evaluation."""
_RECORDER = """
import os, sys

def record(event, arguments):
    if event in ("os.fork", "os.forkpty", "socket.getaddrinfo", "socket.connect", "socket.sendto"):
        with open(os.environ["RECORD"], "a") as file:
            file.write(f"{event} {arguments}\\n")

sys.addaudithook(record)
"""


class SharedServer(RunningServer):
    """The server, as each worker sees it."""

    def __init__(self, directory: Path) -> None:
        """Find the server that has been started in a directory."""
        known = json.loads((directory / "server.json").read_text())
        super().__init__(known["url"], Path(known["log_file"]), process_id=known["process_id"])
        self.cpu_seconds_to_ready: float = known["cpu_seconds_to_ready"]
        self._directory = directory

    @property
    def connections_made(self) -> str:
        """Forks, look-ups and connections of its own, a line each."""
        return (self._directory / "record").read_text()


@contextlib.contextmanager
def shared_server(directory: Path) -> Iterator[SharedServer]:
    """Use the server of a directory that is common to all workers.

    The worker that comes first starts it, and in the end waits until nobody uses it, and ends it in the midst of work.
    """
    directory.mkdir(exist_ok=True)
    users, lock = directory / "users", FileLock(directory / "lock")
    users.mkdir(exist_ok=True)
    me = users / str(os.getpid())
    with contextlib.ExitStack() as owned:
        owner = None
        try:
            with lock:
                me.touch()
                if not (directory / "server.json").exists():
                    owner = owned.enter_context(_started(directory))
            running = SharedServer(directory)
            try:
                yield running
            finally:
                running.client.close()
        finally:
            me.unlink()  # even if it didn't start, or others would wait for us
            if owner is not None:
                _wait_for_others(directory, users, lock)
        if owner is not None:
            _end_while_answering(owner)
            assert not (directory / "record").read_text()


@contextlib.contextmanager
def _started(directory: Path) -> Iterator[Server]:
    """Start it in a new home, where nobody has refused anything, and without signs of tests, which libraries spare."""
    home = directory / "home"
    home.mkdir(exist_ok=True)
    (home / "sitecustomize.py").write_text(_RECORDER)
    record = directory / "record"
    record.write_text("")
    path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    variables = {"PYTHONPATH": path, "HOME": str(home), "RECORD": str(record), "CI": "false"}
    store = _write_store(directory / "store")
    # A machine that is busy with other tests may take long for the first ablation, and for the last answers.
    with Server(
        real=True,
        engine="auto",
        model_store=store,
        request_timeout=PATIENCE,
        shutdown_timeout=PATIENCE / 2,
        variables=variables,
    ) as server:
        known = {
            "url": server.url,
            "log_file": str(server.log_file),
            "process_id": server.process_id,
            "cpu_seconds_to_ready": server.metrics()["process_cpu_seconds_total"],
        }
        (directory / "server.json").write_text(json.dumps(known))
        yield server


def _write_store(store: Path) -> Path:
    """The project's model, and once more under another name with another transform."""
    if not store.exists():
        shutil.copytree(BUNDLE, store / MODEL / "1")
        other = shutil.copytree(BUNDLE, store / OFFICIAL / "1")
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["name"], manifest["preprocessing"]["transform"] = OFFICIAL, "official"
        (other / "manifest.json").write_text(json.dumps(manifest))
        set_default(store, MODEL)
    return store


def _wait_for_others(directory: Path, users: Path, lock: FileLock) -> None:
    while True:
        with lock:
            if not any(_alive(int(user.name)) for user in users.iterdir()):
                (directory / "server.json").unlink()  # whoever comes now starts another one
                return
        time.sleep(0.1)


def _alive(process_id: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, 0)
        return True
    return False


def _end_while_answering(server: Server) -> None:
    """End it while its engine computes: what it has accepted is answered."""
    requests, images = 8, 8
    files = [("image", ("a.jpg", SAMPLES[0].read_bytes()))] * images

    def accepted() -> float:
        return sum(v for k, v in server.metrics().items() if k.startswith("condconv_rows_accepted_total"))

    before = accepted()
    with new_client(server.url, connections=requests) as client, ThreadPoolExecutor(requests) as pool:
        futures = [pool.submit(client.post, "/predict", files=files) for _ in range(requests)]
        wait_for(lambda: accepted() == before + requests * images)
        server.terminate()
        for future in futures:
            assert [len(entry["classes"]) for entry in future.result().json()["predictions"]] == [5] * images
