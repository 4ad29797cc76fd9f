"""The server against others that serve the same weights: B0-8e, JPEGs of 120 kB, wrk with 16 clients.

Only the contestant that is measured runs; they take turns round by round, so that a busy moment of the machine hits all
of them, and the figures are medians over the rounds. First each one must name the same best class.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import contestants
import httpx
import load
import psutil
import report
import service_contestants
import service_load

PACKAGES = ("tensorflow-cpu", "openvino", "torch", "timm", "onnxruntime", "litserve", "mosec", "fastapi", "uvicorn")
OURS: dict[str, dict[str, str]] = {
    "ours f32": {"precision": "float32"},
    "ours precision=auto": {"precision": "auto"},
    "ours f32, without native kernels": {"precision": "float32", "native": "off"},
    "ours precision=auto, without native kernels": {"precision": "auto", "native": "off"},
}
UNBATCHED = "FastAPI, our engine f32"
# Ours over the best server with another engine, and over our engine without batching.
TARGETS = {"ours f32": 1.9, "ours precision=auto": 2.6}
UNBATCHED_TARGET = 1.3


JPEG = "image/jpeg"


def in_form() -> tuple[str, bytes]:
    """The photo as a form's file: its content type and its bytes."""
    request = httpx.Request("POST", "http://x", files={"image": ("photo.jpg", service_load.photo(), JPEG)})
    return request.headers["Content-Type"], request.read()


class Peer:
    """Another server as a process of its own."""

    def __init__(self, name: str, work: Path) -> None:
        """Start it and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        route = "inference" if name.startswith("Mosec") else "predict"
        self.url = f"http://127.0.0.1:{port}/{route}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-W", "ignore", service_contestants.__file__, name, str(work), str(port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)
        self.content_type, self.body = in_form() if name.startswith("LitServe") else (JPEG, service_load.photo())
        end, headers = time.monotonic() + 60, {"Content-Type": self.content_type}
        while True:
            try:
                if httpx.post(self.url, content=self.body, headers=headers, timeout=60).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                self._log.seek(0)
                raise RuntimeError(f"{name} doesn't start: {self._log.read()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it and all its workers, which must not disturb whoever is next."""
        processes = [psutil.Process(self._process.pid)]
        processes += processes[0].children(recursive=True)
        self._process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=5)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)
        self._process.wait()


def start(name: str, work: Path) -> tuple[Any, str, str, bytes]:
    """Start a contestant; it, where it takes images, and an image as it takes it: content type and bytes."""
    if name in OURS:
        server = service_load.Server(model_store=work / "store", **OURS[name])
        return server, f"{server.url}/predict", JPEG, service_load.photo()
    peer = Peer(name, work)
    return peer, peer.url, peer.content_type, peer.body


def best_class(url: str, body: bytes, content_type: str) -> int:
    """The class that a contestant thinks most probable."""
    answer = httpx.post(url, content=body, headers={"Content-Type": content_type}, timeout=60).json()
    found = answer["predictions"][0]["classes"][0]["index"] if "predictions" in answer else answer["classes"][0]
    return int(found)


def prepare(work: Path) -> None:
    """Weights, exports, and a bundle of the same weights."""
    if not (work / "weights.safetensors").exists():
        subprocess.run([sys.executable, contestants.__file__, "prepare", str(work)], check=True)
    if not (work / "store").exists():
        command = [sys.executable, "-m", "condconv_serve", "models", "import", str(work / "weights.safetensors")]
        options = ["--architecture", contestants.ARCHITECTURE, "--name", "b0-8e", "--transform", "pillow"]
        subprocess.run([*command, *options, "--model-store", str(work / "store")], check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", default="", help="servers whose name contains one of these, comma-separated")
    parser.add_argument("--work", type=Path, help="where weights and exports are, or are put")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        prepare(work)
        measure(work, arguments)


def measure(work: Path, arguments: argparse.Namespace) -> None:
    """All rounds."""
    file, script = work / "body", str(work / "wrk.lua")
    runs: dict[str, list[load.ClosedLoop]] = {
        name: []
        for name in (*OURS, *service_contestants.SERVERS)
        if any(word in name for word in arguments.only.split(","))
    }
    classes = {}
    for number in range(arguments.rounds):
        for name in list(runs):
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            try:
                server, url, content_type, body = start(name, work)
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
                del runs[name]
                continue
            try:
                classes[name] = best_class(url, body, content_type)
                file.write_bytes(body)
                for seconds in (4, arguments.seconds):  # the first warms up
                    found = load.wrk(
                        url,
                        str(file),
                        clients=arguments.clients,
                        seconds=seconds,
                        script=script,
                        content_type=content_type,
                    )
                runs[name].append(found)
            finally:
                server.stop()
    if len(set(classes.values())) > 1:
        sys.exit(f"they don't agree: {classes}")
    figures = {
        name: {
            "rate": [run.rate for run in found],
            "p50": median(run.p50 for run in found),
            "p99": median(run.p99 for run in found),
            "errors": sum(run.errors for run in found),
        }
        for name, found in runs.items()
        if found
    }
    rows = [
        [name, f"{median(f['rate']):.1f}", f"{f['p50']:.0f}", f"{f['p99']:.0f}", str(f["errors"])]
        for name, f in figures.items()
    ]
    print(report.table(["server", "rows/s", "p50 ms", "p99 ms", "errors"], rows), end="\n\n")
    others = [name for name in figures if name in service_contestants.SERVERS and name != UNBATCHED]
    peer = max(others, key=lambda name: median(figures[name]["rate"]), default=None)
    wanted = {(name, peer): target for name, target in TARGETS.items()} | {("ours f32", UNBATCHED): UNBATCHED_TARGET}
    goals = []
    for (name, other), target in wanted.items():
        if name in figures and other in figures:
            ratio = median(a / b for a, b in zip(figures[name]["rate"], figures[other]["rate"], strict=True))
            goals.append([f"{name} over {other}", f"{ratio:.2f}", f"{target}", report.verdict(ratio >= target)])
    for name in TARGETS:
        for other in (name for name in figures if name in service_contestants.SERVERS):
            if name in figures:
                late = figures[name]["p99"] / figures[other]["p99"]
                goals.append([f"p99 of {name} over that of {other}", f"{late:.2f}", "<= 1", report.verdict(late <= 1)])
    print(report.table(["ratio", "found", "wanted", ""], goals))
    document = {"machine": report.machine(PACKAGES), "clients": arguments.clients, "figures": figures}
    print(f"\nwrote {report.save('service_peers', document)}")


if __name__ == "__main__":
    main()
