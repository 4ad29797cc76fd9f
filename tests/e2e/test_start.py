"""From the command line to ready, or to an exit code and a sentence that helps."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.e2e.server import BUNDLE, MODEL, PATIENCE, ROOT, Server, assert_problem, command, environment


def test_port_answers_while_the_models_load(server: Server) -> None:
    early = server.while_loading
    assert early is not None
    assert (early.livez.status_code, early.livez.json()["status"]) == (200, "ok")
    assert_problem(early.readyz, 503, "not_ready", "loading")
    assert early.readyz.headers["retry-after"] == "5"
    assert_problem(early.predict, 503, "not_ready", "loading")
    (model,) = early.models.json()["models"]
    assert (model["name"], model["versions"]) == (MODEL, [])
    assert model["all_versions"][0]["state"] in ("available", "loading")


def test_is_ready_soon(server: Server) -> None:
    print(f"\nready after {server.seconds_to_ready:.1f} s")
    assert server.seconds_to_ready < 60, f"{server.seconds_to_ready:.1f} s; 15 s on a quiet machine"


def test_every_step_of_the_start_is_logged_in_order(server: Server) -> None:
    steps = (
        "listening on",
        "bundle checked",
        "network built",
        "engine built",
        "loaded and warmed up",
        "INFO    ready",
    )
    places = [server.log.find(step) for step in steps]
    assert -1 not in places, server.log
    assert places == sorted(places)


def test_is_ready_with_its_model_once_warmed_up(server: Server) -> None:
    for path in ("/readyz", "/healthz"):
        response = server.client.get(path)
        assert response.status_code == 200
        assert response.json() == {"status": "ok", "models": [{"name": MODEL, "version": "1"}]}


def test_signal_while_loading_is_no_failure() -> None:
    with Server(until_ready=False) as server:
        assert server.client.get("/readyz").status_code == 503
        assert server.stop() == 0


def assert_fails(*says: str, exit_code: int = 1, arguments: tuple[str, ...] = (), **settings: object) -> None:
    """Start a server that can't start: it must say why in a sentence."""
    ended = subprocess.run(
        command("--port", "0", *arguments),
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


def test_store_is_missing(tmp_path: Path) -> None:
    assert_fails("no directory", model_store=tmp_path / "nowhere")


def test_store_is_empty(tmp_path: Path) -> None:
    assert_fails("holds no bundle", "manifest.json", model_store=tmp_path)


def test_default_model_is_missing() -> None:
    assert_fails("nonesuch", MODEL, default_model="nonesuch")


def test_setting_is_impossible() -> None:
    assert_fails("CONDCONV_MAX_BATCH_SIZE", exit_code=2, max_batch_size=0)


@pytest.mark.parametrize("name", ["weights.safetensors", "labels.json", "MODEL_CARD.md"])
def test_flipped_bit(store: Path, name: str) -> None:
    file = store / MODEL / "1" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert_fails(f"{MODEL}/1: {name} has SHA-256", model_store=store)


def test_truncated_weights(store: Path) -> None:
    file = store / MODEL / "1" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert_fails("weights.safetensors has", "bytes, but the manifest says", model_store=store)


def test_missing_file(store: Path) -> None:
    (store / MODEL / "1" / "labels.json").unlink()
    assert_fails("labels.json is missing", model_store=store)


def test_manifest_is_no_json(store: Path) -> None:
    (store / MODEL / "1" / "manifest.json").write_text("{")
    assert_fails("manifest.json is not valid JSON", model_store=store)


def test_weights_do_not_fit_though_the_checksum_is_right(store: Path) -> None:
    """This shows only once the port is open, in the thread that loads."""
    bundle = store / MODEL / "1"
    weights = load_file(bundle / "weights.safetensors")
    missing = sorted(weights)[0]
    del weights[missing]
    save_file(weights, bundle / "weights.safetensors")
    data = (bundle / "weights.safetensors").read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = {"size": len(data), "sha256": sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert_fails(missing, model_store=store)
