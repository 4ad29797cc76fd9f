"""The memory of a server with B0-8e: while it loads the model, when it is ready, and after mixed requests.

Each engine gets a server of its own. Eight clients send requests of 1 to 8 JPEGs. The figures are resident memory, code
that the machine's processes share included; "at most" is its peak so far.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import report
from random_networks import make_bundle
from service_load import Server, photo

ARCHITECTURE = "efficientnet-condconv-b0-8e"
CLIENTS = 8
MIB = 2**20
SERVING, LOADING = 0.9e9 / MIB, 1.1e9 / MIB
"""What a server with native kernels may take after the requests, and while it loads the model."""


def cases() -> dict[str, dict[str, str]]:
    """Settings of each server, as far as this machine has what they need."""
    from condconv_serve.runtime.devices import detect_machine

    machine = detect_machine(look_for_accelerators=False)
    engines = {
        "native": {"engine": "tensorflow", "native": "on"},
        "TensorFlow": {"engine": "tensorflow", "native": "off"},
        **({"OpenVINO": {"engine": "openvino", "native": "off"}} if machine.openvino else {}),
    }
    precisions = ["float32", *(["bfloat16"] if machine.cpu_bfloat16 else [])]
    return {f"{name}, {p}": settings | {"precision": p} for p in precisions for name, settings in engines.items()}


def measure(store: Path, settings: dict[str, str], requests: Sequence[int]) -> dict[str, Any]:
    """MiB when the server is ready, after so many requests, and at most until each of these."""
    server = Server(model_store=store, **settings)
    data, rng, done = photo(), random.Random(0), 0
    found = {"ready": server.resident_mib(), "loading": peak_mib(server)}
    try:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:

            def ask(images: int) -> None:
                files = [("image", (f"{i}.jpg", data, "image/jpeg")) for i in range(images)]
                client.post("/predict", files=files).raise_for_status()

            with ThreadPoolExecutor(CLIENTS) as clients:
                for number in requests:
                    list(clients.map(ask, [rng.randint(1, 8) for _ in range(number - done)]))
                    done = number
                    found[f"after {number}"] = server.resident_mib()
        found["at most"] = peak_mib(server)
    finally:
        server.stop()
    return found


def peak_mib(server: Server) -> float:
    """The most that the server's process has occupied so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--only", default="", help="engines whose name contains this")
    arguments = parser.parse_args()
    marks = (arguments.requests // 4, arguments.requests)
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        make_bundle(Path(directory), ARCHITECTURE)
        for name, settings in cases().items():
            if arguments.only in name:
                print(f"{name} ...", file=sys.stderr, flush=True)
                found[name] = measure(Path(directory), settings, marks)
    columns = {"loading": "while loading, at most", "ready": "ready"}
    columns |= {f"after {number}": f"after {number} requests" for number in marks} | {"at most": "at most"}
    rows = [[name, *(f"{sizes[column]:.0f} MiB" for column in columns)] for name, sizes in found.items()]
    print(report.table(["engine", *columns.values()], rows), end="\n\n")
    goals = []
    for name, sizes in found.items():
        if name.startswith("native"):
            for what, size, most in (
                ("while loading", sizes["loading"], LOADING),
                (f"after {marks[-1]} requests", sizes[f"after {marks[-1]}"], SERVING),
            ):
                goals.append([f"{name}, {what}", f"{size:.0f} MiB", f"< {most:.0f}", report.verdict(size < most)])
    if goals:
        print(report.table(["", "found", "wanted", ""], goals))
    print(f"\nwrote {report.save('memory', {'machine': report.machine(), 'figures': found})}")


if __name__ == "__main__":
    main()
