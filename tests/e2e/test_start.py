"""From the command line to ready, or to an exit code and a sentence that helps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from condconv_serve.bootstrap import Service
from condconv_serve.errors import BundleError, ConfigurationError
from condconv_serve.settings import Settings
from tests.e2e.server import BUNDLE, MODEL, PATIENCE, ROOT, Server, assert_problem, command, environment, wait_for
from tests.e2e.shared import SharedServer

_GATE = """
import os, sys, threading, time

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow" and threading.current_thread() is not threading.main_thread():
            while not os.path.exists(os.environ["GATE"]):
                time.sleep(0.01)

sys.meta_path.insert(0, Gate())
"""
"""A `sitecustomize` with which the thread that loads models imports TensorFlow once there is a file."""


def test_port_answers_while_the_models_load() -> None:
    with Server(fault="hold load", until_ready=False) as server:
        # With workers, fronts answer before the engine process has said anything.
        wait_for(lambda: "is starting" not in server.client.get("/readyz").text)
        livez, readyz = server.client.get("/livez"), server.client.get("/readyz")
        assert (livez.status_code, livez.json()["status"]) == (200, "ok")
        assert_problem(readyz, 503, "not_ready", "loading")
        assert readyz.headers["retry-after"] == "5"
        assert_problem(server.client.post("/predict", content=b"anything"), 503, "not_ready", "loading")
        (model,) = server.client.get("/models").json()["models"]
        assert (model["name"], model["versions"]) == (MODEL, [])
        assert model["all_versions"][0]["state"] in ("available", "loading")
        assert "loaded and warmed up" not in server.log
        server.fault()
        wait_for(server.is_ready)
        for path in ("/readyz", "/healthz"):
            response = server.client.get(path)
            assert response.status_code == 200
            assert response.json() == {"status": "ok", "models": [{"name": MODEL, "version": "1"}]}
        wait_for(lambda: "loaded and warmed up" in server.log)


def test_is_ready_soon(real_server: SharedServer) -> None:
    """Of processor time, so that a busy machine fails nothing; it has loaded two models by then."""
    print(f"\nready after {real_server.cpu_seconds_to_ready:.1f} s")
    assert real_server.cpu_seconds_to_ready < 60


def test_every_step_of_the_start_is_logged(real_server: SharedServer) -> None:
    for step in (
        "listening on",
        "bundle checked",
        "TensorFlow imported",
        "network built",
        "computed by",
        "loaded and warmed up",
        "INFO    ready",
    ):
        wait_for(lambda step=step: step in real_server.log)  # type: ignore[misc]


def test_signal_while_loading_is_no_failure(tmp_path: Path) -> None:
    """While TensorFlow is being imported, or soon after."""
    (tmp_path / "sitecustomize.py").write_text(_GATE)
    gate = tmp_path / "gate"
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with Server(real=True, until_ready=False, variables={"PYTHONPATH": path, "GATE": str(gate)}) as server:
        assert server.client.get("/readyz").status_code == 503
        gate.touch()
        assert server.stop() == 0


def assert_fails(
    *says: str, exit_code: int = 1, arguments: tuple[str, ...] = (), real: bool = True, **settings: object
) -> None:
    """Start a server that can't start: it must say why in a sentence."""
    ended = subprocess.run(
        command("--port", "0", *arguments, real=real),
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == exit_code, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "error:" in ended.stderr
    for text in says:
        assert text in ended.stderr


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the store that may be damaged."""
    shutil.copytree(BUNDLE, tmp_path / MODEL / "1")
    return tmp_path


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert_fails(f"127.0.0.1:{port}", "in use", arguments=("--port", str(port)))


def test_stores_that_cannot_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: `test_port_in_use` and `test_damaged_file` show how such errors end the command."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    shipped = BUNDLE.parents[1]
    for error, settings, says in (
        (BundleError, {"model_store": tmp_path / "nowhere"}, r"nowhere is no directory"),
        (ConfigurationError, {"model_store": tmp_path}, r"holds no bundle \(.*manifest\.json\)"),
        (
            ConfigurationError,
            {"model_store": shipped, "default_model": "nonesuch"},
            f"'nonesuch' is not in the store; there are: {MODEL}",
        ),
    ):
        with pytest.raises(error, match=says):
            Service(Settings(**settings))


def test_setting_is_impossible() -> None:
    assert_fails("CONDCONV_MAX_BATCH_SIZE", exit_code=2, max_batch_size=0)


def test_damaged_file(store: Path) -> None:
    """`tests/unit/store/test_bundle.py` has all kinds of damage, `test_live_versions.py` some beside traffic."""
    file = store / MODEL / "1" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert_fails(f"{MODEL}/1: weights.safetensors has SHA-256", model_store=store)


def test_a_model_that_cannot_be_loaded(store: Path) -> None:
    """This shows only once the port is open, in the thread that loads. `test_real_versions.py` has real networks."""
    bundle = store / MODEL / "1"
    weights = load_file(bundle / "weights.safetensors")
    del weights["logits/bias"]
    save_file(weights, bundle / "weights.safetensors")
    data = (bundle / "weights.safetensors").read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_fails("logits/bias is missing", model_store=store, real=False)
