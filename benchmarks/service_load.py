"""The server under load: closed loop against the bound that engine and decoder set, latency at 70 %, and overload.

Real JPEGs over real sockets. The closed loop is wrk's (Debian: apt-get install wrk); the load generators share the
machine's cores with the server, as they do with every server that is measured so.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
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
import report
import service_bound
from PIL import Image

from service.samples import SAMPLES

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
PHOTO_BYTES, PHOTO_PIXELS = 110_000, (500, 375)
BOUND, LATENCY, GOODPUT, REFUSAL_MS = 0.88, 4.0, 0.9, 100.0


def photo(size: int = PHOTO_BYTES) -> bytes:
    """A JPEG of about that many bytes."""
    image = Image.open(SAMPLES[0]).convert("RGB").resize(PHOTO_PIXELS)
    for quality in range(90, 101):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() >= size:
            break
    return file.getvalue()


class Server:
    """`condconv serve` as a process of its own, with settings."""

    def __init__(self, **settings: object) -> None:
        """Start it and wait until it is ready."""
        environment = os.environ | {f"CONDCONV_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        self._log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        self.url = self._wait(lambda: re.search(r"listening on (http://\S+)", self.log))[1]
        self._wait(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def _wait(self, condition: Any, seconds: float = 180.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server doesn't start:\n{self.log}")
            time.sleep(0.05)
        return found

    def resident_mib(self) -> float:
        """Memory that the process occupies now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def bound(photo_file: str, environment: dict[str, str]) -> tuple[float, float, float]:
    """Rows per second that engine and decoder allow on all cores; and the seconds of each per row, all cores busy."""
    command = [sys.executable, service_bound.__file__, photo_file]
    said = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout
    figures = json.loads(said.splitlines()[-1])
    return figures["cores"] / (figures["engine"] + figures["decode"]), figures["engine"], figures["decode"]


def measure(settings: dict[str, object], *, seconds: float, rounds: int, work: Path) -> dict[str, Any]:
    """Everything for one set of settings."""
    data = photo()
    file = work / "photo.jpg"
    file.write_bytes(data)
    script = str(work / "wrk.lua")
    environment = {f"CONDCONV_{name.upper()}": str(value) for name, value in settings.items()}
    bounds = [bound(str(file), environment)]
    server = Server(**settings)
    found: dict[str, Any] = {"photo_bytes": len(data), "closed": {}, "resident_mib": {}}
    try:
        url = f"{server.url}/predict"
        load.wrk(url, str(file), clients=8, seconds=3, script=script)  # warms caches and memory up
        found["resident_mib"]["start"] = server.resident_mib()
        by_clients: dict[int, list[load.ClosedLoop]] = {clients: [] for clients in CLIENTS}
        for _ in range(rounds):
            for clients in CLIENTS:
                by_clients[clients].append(load.wrk(url, str(file), clients=clients, seconds=seconds, script=script))
        for clients, runs in by_clients.items():
            found["closed"][clients] = {
                "rate": median(run.rate for run in runs),
                "p50": median(run.p50 for run in runs),
                "p99": median(run.p99 for run in runs),
                "errors": sum(run.errors for run in runs),
            }
        peak = max(figures["rate"] for figures in found["closed"].values())
        found["peak"] = peak
        request = load.request_bytes("/predict", data)

        def offer(rate: float, for_seconds: float) -> load.Answers:
            return asyncio.run(load.open_loop(server.address, [request], rate=rate, seconds=for_seconds))

        at_70 = [offer(0.7 * peak, 2 * seconds) for _ in range(rounds)]
        lone = found["closed"][1]["p50"]
        found["at_70"] = {
            "p50": median(a.percentile(50) for a in at_70),
            "p99": median(a.percentile(99) for a in at_70),
            "lone": lone,
            "lost": sum(a.lost.total() for a in at_70),
        }
        over = offer(3 * peak, 10 * seconds)
        refused = [status for status in over.by_status if status in (429, 503)]
        found["overload"] = {
            "offered": 3 * peak,
            "goodput": over.rate(),
            "accepted_p99": over.percentile(99),
            "refused": sum(len(over.by_status[s]) for s in refused),
            "refused_p50": over.percentile(50, refused),
            "refused_p99": over.percentile(99, refused),
            "refused_max": over.percentile(100, refused),
            "other": sum(len(t) for s, t in over.by_status.items() if s not in (200, 429, 503)),
            "lost": over.lost.total(),
        }
        found["resident_mib"]["end"] = server.resident_mib()
    finally:
        server.stop()
    bounds.append(bound(str(file), environment))  # before and after, for machines aren't steady
    found["bound"] = dict(zip(("rate", "engine", "decode"), max(bounds), strict=True))
    return found


def describe(found: dict[str, Any]) -> str:
    """The tables."""
    limit = found["bound"]["rate"]
    rows = [
        [str(c), f"{f['rate']:.1f}", f"{f['rate'] / limit:.2f}", f"{f['p50']:.1f}", f"{f['p99']:.1f}", str(f["errors"])]
        for c, f in found["closed"].items()
    ]
    closed = report.table(["clients", "rows/s", "of the bound", "p50 ms", "p99 ms", "errors"], rows)
    at_70, over, peak = found["at_70"], found["overload"], found["peak"]
    goals = [
        ["peak over the bound", f"{peak / limit:.2f}", f"{BOUND}", report.verdict(peak / limit >= BOUND)],
        [
            "p99 at 70 % over a lone request",
            f"{at_70['p99'] / at_70['lone']:.1f}",
            f"< {LATENCY}",
            report.verdict(at_70["p99"] < LATENCY * at_70["lone"]),
        ],
        [
            "goodput at 3x over peak",
            f"{over['goodput'] / peak:.2f}",
            f"{GOODPUT}",
            report.verdict(over["goodput"] >= GOODPUT * peak),
        ],
        [
            "slowest refusal at 3x, ms",
            f"{over['refused_max']:.0f} (p50 {over['refused_p50']:.0f}, p99 {over['refused_p99']:.0f})",
            f"< {REFUSAL_MS:.0f}",
            report.verdict(over["refused_max"] < REFUSAL_MS),
        ],
        [
            "neither answered nor refused",
            str(over["lost"] + over["other"]),
            "0",
            report.verdict(over["lost"] + over["other"] == 0),
        ],
        [
            "MiB resident, start and end",
            f"{found['resident_mib']['start']:.0f}, {found['resident_mib']['end']:.0f}",
            "",
            "",
        ],
    ]
    head = (
        f"bound {limit:.1f} rows/s: engine {found['bound']['engine'] * 1e3:.2f} ms and decoder "
        f"{found['bound']['decode'] * 1e3:.2f} ms per row and core; JPEG of {found['photo_bytes'] / 1e3:.0f} kB"
    )
    return "\n\n".join([head, closed, report.table(["", "found", "wanted", ""], goals)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-store", default="model_store")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    settings: dict[str, object] = {
        "model_store": Path(arguments.model_store).resolve(),
        "precision": arguments.precision,
        "engine": arguments.engine,
    }
    with tempfile.TemporaryDirectory() as work:
        found = measure(settings, seconds=arguments.seconds, rounds=arguments.rounds, work=Path(work))
    print(describe(found))
    name = f"service_load_{arguments.engine}_{arguments.precision}"
    print(f"\nwrote {report.save(name, {'machine': report.machine(('tensorflow-cpu', 'openvino')), **found})}")


if __name__ == "__main__":
    main()
