"""The server in different set-ups, in turns on one machine, since its speed drifts.

`python benchmarks/service_variants.py workers` compares one process with several under a closed loop: answers a second
and CPU time of all processes per answer. `python benchmarks/service_variants.py shadow` shows what callers notice of
copies for another version (shadow): p50 and p99 of an open loop at shares of the peak, with and without.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import load
import psutil
import report
import service_load
import uvloop

VARIANTS: dict[str, dict[str, object]] = {
    "one process": {},
    "two fronts and the engine process": {"workers": 2},
}
ENOUGH = 0.95
"""What workers must reach of one process's answers a second, on two cores."""
LOADS = (0.3, 0.5, 0.7)
ALIASES = ("plain", "mirrored")


def cpu_seconds(server: service_load.Server) -> float:
    """CPU time of a server's processes until now."""
    parent = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(one.user + one.system for one in times)


class Photo:
    """The JPEG that all ask with."""

    def __init__(self, work: Path) -> None:
        """Write it for wrk."""
        self.data = service_load.photo()
        self._file, self._script = work / "photo.jpg", work / "wrk.lua"
        self._file.write_bytes(self.data)

    def closed_loop(self, url: str, *, clients: int, seconds: float) -> load.ClosedLoop:
        """Have so many clients ask without pause."""
        found = load.wrk(url, str(self._file), clients=clients, seconds=seconds, script=str(self._script))
        assert not found.errors, found
        return found


def workers(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All variants run; one at a time is asked."""
    photo = Photo(work)
    servers = {name: service_load.Server(model_store=arguments.model_store, **VARIANTS[name]) for name in VARIANTS}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    try:
        for server in servers.values():
            photo.closed_loop(f"{server.url}/predict", clients=arguments.clients, seconds=3)
        for number in range(arguments.rounds):
            names = list(servers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                server, before = servers[name], cpu_seconds(servers[name])
                run = photo.closed_loop(f"{server.url}/predict", clients=arguments.clients, seconds=arguments.seconds)
                spent = cpu_seconds(server) - before
                found[name].append(
                    {
                        "rate": run.rate,
                        "cpu_ms": spent / (run.rate * arguments.seconds) * 1e3,
                        "p50": run.p50,
                        "p99": run.p99,
                    }
                )
    finally:
        for server in servers.values():
            server.stop()
    base = found["one process"]
    rows = []
    for name, rounds in found.items():
        share = median(one["rate"] / other["rate"] for one, other in zip(rounds, base, strict=True))
        rate, cpu, p50, p99 = (median(one[key] for one in rounds) for key in ("rate", "cpu_ms", "p50", "p99"))
        wanted = "" if name == "one process" else report.verdict(share >= ENOUGH)
        rows.append([name, f"{rate:.1f}", f"{share:.2f}", wanted, f"{cpu:.2f}", f"{p50:.0f}", f"{p99:.0f}"])
    header = ["", "answers/s", "of one process", f"wanted {ENOUGH}", "CPU ms an answer", "p50 ms", "p99 ms"]
    print(report.table(header, rows))
    return {"rounds": found}


def shadow(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One server, whose version 2 has the weights of version 1; one alias of 1 has its requests copied to 2."""
    photo, store = Photo(work), work / "store"
    shutil.copytree(arguments.model_store, store)
    name = next(path.name for path in sorted(store.iterdir()) if path.is_dir())
    shutil.copytree(store / name / "1", store / name / "2")
    manifest = store / name / "2" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": "2"}))
    for alias, mirrored in zip(ALIASES, ((), ("--mirror", "2")), strict=True):
        command = [sys.executable, "-m", "condconv_serve", "models", "alias", name, alias, "1", *mirrored]
        subprocess.run([*command, "--model-store", str(store)], check=True, stdout=subprocess.DEVNULL)
    server = service_load.Server(model_store=store)
    path, found = f"/predict?model={name}&version=", list[dict[str, Any]]()
    try:
        photo.closed_loop(f"{server.url}{path}mirrored", clients=8, seconds=3)
        assert compared(server, name), "Nothing is copied."
        for number in range(arguments.rounds):
            peak = photo.closed_loop(f"{server.url}{path}plain", clients=arguments.clients, seconds=arguments.seconds)
            for share in LOADS:
                for alias in ALIASES if number % 2 else ALIASES[::-1]:
                    copied = settled(server, name)
                    request = load.request_bytes(f"{path}{alias}", photo.data)
                    answers = uvloop.run(
                        load.open_loop(server.address, [request], rate=share * peak.rate, seconds=2 * arguments.seconds)
                    )
                    assert answers.by_status.keys() == {200}, answers.by_status.keys()
                    assert not answers.lost, answers.lost
                    found.append(
                        {
                            "load": share,
                            "alias": alias,
                            "p50": answers.percentile(50),
                            "p99": answers.percentile(99),
                            "answers": len(answers.by_status[200]),
                            "copies": settled(server, name) - copied,
                        }
                    )
    finally:
        server.stop()
    rows = []
    for share in LOADS:
        for alias in ALIASES:
            these = [one for one in found if (one["load"], one["alias"]) == (share, alias)]
            p50, p99 = (median(one[key] for one in these) for key in ("p50", "p99"))
            copies = sum(one["copies"] for one in these) / sum(one["answers"] for one in these)
            rows.append([f"{share:.0%} of the peak, {alias}", f"{p50:.1f}", f"{p99:.1f}", f"{copies:.0%}"])
    print(report.table(["", "p50 ms", "p99 ms", "images compared"], rows))
    return {"runs": found}


def compared(server: service_load.Server, name: str) -> int:
    """How many copies were compared until now."""
    shadows = httpx.get(f"{server.url}/models/{name}").json()["shadows"]
    return sum(int(one["images"]) for one in shadows)


def settled(server: service_load.Server, name: str) -> int:
    """The same once no copy waits any more."""
    before = -1
    while (now := compared(server, name)) != before:
        before = now
        time.sleep(1)
    return now


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("workers", "shadow"))
    parser.add_argument("--model-store", type=Path, default=Path("model_store"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    arguments.model_store = arguments.model_store.resolve()
    with tempfile.TemporaryDirectory() as work:
        found = {"workers": workers, "shadow": shadow}[arguments.what](arguments, Path(work))
    name = f"service_{arguments.what}"
    print(f"\nwrote {report.save(name, {'machine': report.machine(('tensorflow-cpu', 'openvino')), **found})}")


if __name__ == "__main__":
    main()
