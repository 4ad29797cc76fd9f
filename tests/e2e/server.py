"""The server as a subprocess, and how the tests talk to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from condconv_serve.files import write_whole
from tests.e2e.tiny_models import light_store
from tests.forked import ForkedServer, forker
from tests.workers import WORKERS

ROOT = Path(__file__).parents[2]
MODEL = "efficientnet-lite0-condconv-4e"
BUNDLE = ROOT / "model_store" / MODEL / "1"
PATIENCE = 180.0
_KEPT_SECONDS = 60.0
"""How long a client keeps an idle connection: less than the server does."""
FAKE = "tests.contract.fake_server"


def command(*arguments: str, real: bool = True) -> list[str]:
    return [sys.executable, "-m", "condconv_serve" if real else FAKE, "serve", *arguments]


def environment(**settings: object) -> dict[str, str]:
    """Nothing of the developer's own settings, but those of a test, and as many workers as this run is with."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONDCONV_")}
    given = {"workers": WORKERS} | settings
    return clean | {f"CONDCONV_{name.upper()}": str(value) for name, value in given.items()}


class RunningServer:
    """A server that listens, whoever has started it."""

    def __init__(self, url: str, log_file: Path, *, process_id: int) -> None:
        self.url = url
        self.log_file = log_file
        self.process_id = process_id
        self.client = new_client(url)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    @property
    def grpc(self) -> str:
        """Host and port of its gRPC server."""
        match = re.search(r"gRPC on (\S+)", self.log)
        assert match, f"there is no gRPC server:\n{self.log}"
        return match[1]

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as `name{label="value"}` in the order of the labels' names.

        Labels without a value are left out, since they mean the same as none.
        """
        return {
            sample_name(sample.name, **{name: value for name, value in sample.labels.items() if value}): sample.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
        }

    def children(self) -> dict[str, int]:
        """Process ids of its children by name; only servers with workers have some."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:  # it has just ended
                continue
            if f"\nPPid:\t{self.process_id}\n" in text and "\nState:\tZ" not in text:
                name = re.match(r"Name:\tcondconv-(\w+)", text)
                found[name[1] if name else status.parent.name] = int(status.parent.name)
        return found

    def processes(self) -> list[int]:
        """Process ids of all that it consists of."""
        return [self.process_id, *self.children().values()]

    def is_ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def refuses_connections(self) -> bool:
        """Whether it listens no longer."""
        try:
            socket.create_connection(self.address, timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # it stopped to listen in this moment
            return False
        return False


class Server(RunningServer):
    """A server with settings of its own, from `__enter__` until it ends; by default ready once entered.

    It is the one of `tests.contract.fake_server`, which starts at once and fails on demand, unless `real` is asked for:
    where the answers of a network count, or what only TensorFlow does. A fake one is forked, and serves `light_store`
    by default; with `variables` of the environment it is a process of its own. It must end with `exit_code`, and
    without `tracebacks` in its log unless they are meant to be there.
    """

    def __init__(
        self,
        *,
        real: bool = False,
        until_ready: bool = True,
        fault: str = "",
        exit_code: int = 0,
        tracebacks: bool = False,
        variables: dict[str, str] | None = None,
        port: int = 0,
        **settings: object,
    ) -> None:
        self._real = real
        self._port = str(port)
        self._until_ready = until_ready
        self._first_fault = fault
        self._exit_code = exit_code
        self._tracebacks = tracebacks
        self._variables = variables or {}
        self._asked_to_end = False
        # No load balancer has to notice, and TensorFlow alone is loaded sooner than OpenVINO beside it.
        store = {} if real else {"model_store": light_store(BUNDLE)}
        self._settings = {"drain_delay": 0, "engine": "tensorflow"} | store | settings

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="server-")
        directory = Path(self._directory.name)
        self._fault_file = directory / "fault"
        self.fault(self._first_fault)
        self.log_file = directory / "log"
        self._process = self._start(
            environment(**self._settings) | {"FAULT_FILE": str(self._fault_file)} | self._variables
        )
        try:
            wait_for(lambda: self.process_ended() or "listening on http://" in self.log)
            match = re.search(r"listening on (http://\S+)\s", self.log)
            assert match, f"the server didn't start:\n{self.log}"
            super().__init__(match[1], self.log_file, process_id=self._process.pid)
            if self._until_ready:
                wait_for(lambda: self.process_ended() or self.is_ready())
                assert not self.process_ended(), self.log
        except BaseException:
            self._process.kill()
            self._close()
            raise
        return self

    def _start(self, variables: dict[str, str]) -> subprocess.Popen[bytes] | ForkedServer:
        if not self._real and not self._variables:
            self.log_file.touch()
            arguments = ("serve", "--port", self._port)
            return forker(FAKE).start(*arguments, environment=variables, output=self.log_file)
        with self.log_file.open("wb") as log:
            return subprocess.Popen(
                command("--port", self._port, real=self._real),
                env=variables,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            exit_code = self.stop()
            if error is None:
                assert exit_code == self._exit_code, self.log
                assert self._tracebacks or "Traceback" not in self.log, self.log
        finally:
            self._close()

    def fault(self, what: str = "") -> None:
        """Let this go wrong from now on, if it is no real server; see `tests.contract.fake_server`."""
        write_whole(self._fault_file, what)

    @contextlib.contextmanager
    def holding(self, what: str = "rows", *, after: int = 0) -> Iterator[None]:
        """Keep each batch that begins meanwhile in flight until the block ends, but for those of the first rows."""
        self.fault(f"after {after} hold {what}" if after else f"hold {what}")
        try:
            yield
        finally:
            self.fault()

    def process_ended(self) -> bool:
        return self._process.poll() is not None

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        self._asked_to_end = True  # a second signal would force it
        self._process.send_signal(number)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal that does not end the process."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        return self._process.wait(PATIENCE)

    def stop(self) -> int:
        """Ask the server to end, if nobody has yet, and return its exit code."""
        if not self.process_ended() and not self._asked_to_end:
            self.terminate()
        try:
            return self.wait()
        finally:
            self._process.kill()
            self.wait()

    def _close(self) -> None:
        self.wait()
        self._directory.cleanup()
        if hasattr(self, "client"):
            self.client.close()


def sample_name(name: str, **labels: object) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def new_client(url: str, *, connections: int = 1) -> httpx.Client:
    """With one connection, all requests travel on the same one as long as the server keeps it open."""
    # httpx alone would give up a connection after 5 seconds, and a busy machine may stand still for so long.
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEPT_SECONDS
    )
    return httpx.Client(base_url=url, timeout=PATIENCE, limits=limits, verify=False, trust_env=False)


def connection(response: httpx.Response) -> Any:
    """Our end of the connection that a response came on."""
    return response.extensions["network_stream"].get_extra_info("client_addr")


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} seconds"
        time.sleep(0.02)


def assert_problem(response: httpx.Response, status: int, slug: str, *says: str) -> None:
    """Check that a response is a problem whose detail holds all of `says`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) - {"retry_after"} == {"type", "title", "status", "detail", "slug"}
    assert (body["status"], body["slug"]) == (status, slug), body
    assert body["type"] == f"urn:condconv-serve:problem:{slug}"
    for text in says:
        assert text in body["detail"]


def probabilities(response: httpx.Response) -> list[list[float]]:
    """The probabilities of each image in the order of the classes; the request's `top_k` must have been 1000."""
    assert response.status_code == 200, response.text
    answers = []
    for entry in response.json()["predictions"]:
        classes = sorted(entry["classes"], key=lambda scored: scored["index"])
        assert [scored["index"] for scored in classes] == list(range(1000))
        answers.append([scored["probability"] for scored in classes])
    return answers


def top(response: httpx.Response) -> int:
    """The index of the most probable class of a lone image."""
    assert response.status_code == 200, response.text
    (entry,) = response.json()["predictions"]
    return int(entry["classes"][0]["index"])
