"""A server for minutes or hours under changing load, bad images and bad clients: answers right, memory flat.

Each minute has calm traffic, an overload of three times the capacity, requests of many images, images that are none,
clients that leave at every moment, and connections that fall silent. Every answer for a known photograph is compared
with the one that it got when the server was idle. Exit code 1 if one was wrong, a request was lost, the server wasn't
ready at the end, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import load
import report
from PIL import Image
from service_load import Server

from condconv_serve.samples import SAMPLES

TOLERANCE = 1e-4
MAX_GROWTH = 1.05
"""Memory at the end over that after a fifth of the time."""


class Soak:
    """Counts what comes back."""

    def __init__(self, server: Server) -> None:
        """Learn what the photos' answers are."""
        self.server = server
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.photos = list(_crops())
        self.requests = [load.request_bytes("/predict?top_k=3", photo) for photo in self.photos]
        answers = [httpx.post(f"{server.url}/predict?top_k=3", content=photo, timeout=60) for photo in self.photos]
        self.expected = [answer.json()["predictions"][0]["classes"] for answer in answers]

    async def ask(self, number: int, *, leave_after: float | None = None) -> None:
        """Send a photo, and compare its answer, or go away."""
        try:
            reader, writer = await asyncio.open_connection(*self.server.address)
            if leave_after is not None:
                writer.write(self.requests[number])
                await asyncio.sleep(leave_after)
                self.outcomes["left"] += 1
            else:
                async with asyncio.timeout(60):
                    status, _, body = await load.exchange((reader, writer), self.requests[number])
                self.outcomes[str(status)] += 1
                if status == 200:
                    self._compare(number, json.loads(body)["predictions"][0]["classes"])
                elif status not in (429, 503):
                    self.wrong.append(f"status {status}: {body[:200]!r}")
            writer.close()
        except (OSError, EOFError, TimeoutError) as error:
            self.outcomes["lost"] += 1
            self.wrong.append(f"lost: {error!r}")

    def _compare(self, number: int, classes: list[dict[str, float]]) -> None:
        for found, known in zip(classes, self.expected[number], strict=True):
            # Nearly equal probabilities may change places.
            if abs(found["probability"] - known["probability"]) > TOLERANCE:
                self.wrong.append(f"photo {number}: {found} instead of {known}")

    async def crowd(self, rate: float, seconds: float) -> None:
        """Photos at a rate, whether or not answers come."""
        started, tasks = time.perf_counter(), []
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, started + i / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask(random.randrange(len(self.photos)))))
        await asyncio.gather(*tasks)

    async def rubbish(self, count: int) -> None:
        """Images that are none, damaged, or too many."""
        async with httpx.AsyncClient(base_url=self.server.url, timeout=60, trust_env=False) as client:
            for _ in range(count):
                photo = bytearray(random.choice(self.photos))
                kind = random.randrange(4)
                if kind == 0:
                    response = await client.post("/predict", content=random.randbytes(2000))
                elif kind == 1:
                    response = await client.post("/predict", content=bytes(photo[: len(photo) // 2]))
                elif kind == 2:
                    response = await client.post("/predict?top_k=x", content=bytes(photo))
                else:
                    files = [("image", (f"{i}.jpg", bytes(photo))) for i in range(random.randrange(1, 17))]
                    response = await client.post("/predict", files=files)
                self.outcomes[f"rubbish or many: {response.status_code}"] += 1
                if response.status_code >= 500 and response.status_code != 503:
                    self.wrong.append(f"{response.status_code}: {response.text[:200]}")

    async def leavers(self, count: int) -> None:
        """Clients that go away at any moment, and some that only fall silent."""
        silent = []
        for _ in range(count):
            await self.ask(random.randrange(len(self.photos)), leave_after=random.random() * 0.1)
            connection = await asyncio.open_connection(*self.server.address)
            connection[1].write(self.requests[0][: random.randrange(1, 5000)])
            silent.append(connection)
        await asyncio.sleep(1)
        for _, writer in silent:
            writer.close()

    async def minute(self, capacity: float, seconds: float) -> None:
        """Everything once, in about that time."""
        part = seconds / 3
        await asyncio.gather(self.crowd(0.5 * capacity, part), self.rubbish(40), self.leavers(20))
        await self.crowd(3 * capacity, part)
        await asyncio.gather(self.crowd(0.7 * capacity, part), self.leavers(20))


def _crops() -> list[bytes]:
    crops = []
    for sample in SAMPLES:
        image = Image.open(sample).convert("RGB")
        for i in range(6):
            file = io.BytesIO()
            image.crop((8 * i, 8 * i, image.width - 8, image.height - 8)).save(file, "JPEG", quality=90)
            crops.append(file.getvalue())
    return crops


def total(metrics: str, name: str) -> float:
    """The sum of a counter over its labels."""
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(f"{name}{{"))


def main() -> int:
    """Run, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model-store", default="model_store")
    parser.add_argument("--capacity", type=float, default=60.0, help="rows per second that the machine is good for")
    arguments = parser.parse_args()
    server = Server(model_store=Path(arguments.model_store).resolve())
    soak = Soak(server)
    end = time.monotonic() + 60 * arguments.minutes
    memory: list[float] = []
    threads: list[int] = []
    files: list[int] = []
    print("minute  MiB  threads  files  outcomes so far")
    while time.monotonic() < end:
        asyncio.run(soak.minute(arguments.capacity, min(60.0, 60 * arguments.minutes / 5)))
        time.sleep(1)
        process = Path(f"/proc/{server.process.pid}")
        memory.append(server.resident_mib())
        threads.append(len(list((process / "task").iterdir())))
        files.append(len(list((process / "fd").iterdir())))
        figures = f"{len(memory):6} {memory[-1]:4.0f} {threads[-1]:8} {files[-1]:6}"
        print(f"{figures}  {dict(soak.outcomes)}", flush=True)
    ready = httpx.get(f"{server.url}/readyz").status_code == 200
    metrics = httpx.get(f"{server.url}/metrics").text
    empty = "condconv_queue_rows 0.0" in metrics and "condconv_rows_in_flight 0.0" in metrics
    accepted, ended = (total(metrics, f"condconv_rows{kind}_total") for kind in ("_accepted", ""))
    server.stop()
    fifth = len(memory) // 5
    growth = memory[-1] / memory[fifth]
    verdicts = [
        ["wrong answers, lost requests", str(len(soak.wrong)), report.verdict(not soak.wrong)],
        ["ready, and nothing left in the queue", str(ready and empty), report.verdict(ready and empty)],
        ["images accepted, and ended", f"{accepted:.0f}, {ended:.0f}", report.verdict(accepted == ended)],
        [
            "threads after a fifth, at the end",
            f"{threads[fifth]}, {threads[-1]}",
            report.verdict(threads[-1] <= threads[fifth]),
        ],
        ["open files, the same", f"{files[fifth]}, {files[-1]}", report.verdict(files[-1] <= files[fifth] + 5)],
        ["exit code", str(server.process.returncode), report.verdict(server.process.returncode == 0)],
        ["memory at the end over that after a fifth", f"{growth:.3f}", report.verdict(growth <= MAX_GROWTH)],
    ]
    print(report.table(["", "found", "as wanted"], verdicts))
    for complaint in soak.wrong[:10]:
        print(complaint, file=sys.stderr)
    document = {"machine": report.machine(), "memory_mib": memory, "outcomes": dict(soak.outcomes), "growth": growth}
    with contextlib.suppress(OSError):
        print(f"wrote {report.save('soak', document)}")
    return int(any(row[-1] == "no" for row in verdicts))


if __name__ == "__main__":
    sys.exit(main())
