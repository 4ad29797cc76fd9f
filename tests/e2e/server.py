"""The real server as a subprocess, and how the tests talk to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
MODEL = "efficientnet-lite0-condconv-4e"
BUNDLE = ROOT / "model_store" / MODEL / "1"
PATIENCE = 180.0


@dataclass(frozen=True)
class WhileLoading:
    """What a server answered between opening its port and being ready."""

    livez: httpx.Response
    readyz: httpx.Response
    predict: httpx.Response
    models: httpx.Response


def command(*arguments: str, module: str = "condconv_serve") -> list[str]:
    return [sys.executable, "-m", module, "serve", *arguments]


def environment(**settings: object) -> dict[str, str]:
    """Nothing of the developer's own settings, but those of a test."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONDCONV_")}
    return clean | {f"CONDCONV_{name.upper()}": str(value) for name, value in settings.items()}


class Server:
    """A server with settings of its own, from `__enter__` until `stop` or `__exit__`; by default ready once entered."""

    def __init__(
        self,
        *,
        until_ready: bool = True,
        module: str = "condconv_serve",
        variables: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        self._until_ready = until_ready
        self._module = module
        self._variables = variables or {}
        self._asked_to_end = False
        # No load balancer has to notice, and TensorFlow alone is loaded sooner than OpenVINO beside it.
        self._settings = {"drain_delay": 0, "engine": "tensorflow"} | settings
        self._lines: list[str] = []
        self.while_loading: WhileLoading | None = None
        self.seconds_to_ready = float("nan")

    def __enter__(self) -> Server:
        started = time.monotonic()
        self._process = subprocess.Popen(
            command("--port", "0", module=self._module),
            env=environment(**self._settings) | self._variables,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            wait_for(lambda: self.process_ended() or "listening on http://" in self.log)
            match = re.search(r"listening on (http://\S+)", self.log)
            assert match, f"the server didn't start:\n{self.log}"
            self.url = match[1]
            self.client = new_client(self.url)
            if not self._until_ready:
                return self
            self.while_loading = WhileLoading(
                livez=self.client.get("/livez"),
                readyz=self.client.get("/readyz"),
                predict=self.client.post("/predict", content=b"anything"),
                models=self.client.get("/models"),
            )
            wait_for(lambda: self.process_ended() or self.client.get("/readyz").status_code == 200)
            self.seconds_to_ready = time.monotonic() - started
            assert not self.process_ended(), self.log
        except BaseException:
            self._process.kill()
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exit_code = self.stop()
        if error is None:
            assert exit_code == 0, self.log
            assert "Traceback" not in self.log, self.log

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def process_ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def process_id(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._asked_to_end = True  # a second signal would force it
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until the process has ended of itself, and return its exit code."""
        return self._process.wait(seconds)

    def stop(self) -> int:
        """Ask the server to end, and return its exit code."""
        if not self.process_ended() and not self._asked_to_end:
            self.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            if not self.process_ended():
                self._process.kill()
            self._end()
        return self._process.returncode

    def _end(self) -> None:
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        if hasattr(self, "client"):
            self.client.close()

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as `name{label="value"}` in the order of the labels' names."""
        return {
            sample_name(sample.name, **sample.labels): sample.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
        }


def sample_name(name: str, **labels: object) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def new_client(url: str, *, connections: int = 1) -> httpx.Client:
    """With one connection, all requests travel on the same one as long as the server keeps it open."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
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
