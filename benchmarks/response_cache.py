"""What the response cache saves and takes: CPU time of hits and misses, and memory beside the bytes that it counts.

One server with a cache and one without, the embedded default model, 4 clients, each case in turn, several times. For
the memory, photos that differ fill the cache.

    python benchmarks/response_cache.py --requests 400 --rounds 3 --fill 4000
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median

import httpx
import service_load
from front_cost import cpu_seconds

CLIENTS = 4
CACHE_BYTES = 256 * 2**20


async def send(url: str, bodies: list[bytes], headers: dict[str, str]) -> None:
    """Ask for the classes of each body; every answer must be a good one."""
    left = iter(bodies)

    async def keep_asking(client: httpx.AsyncClient, left: Iterator[bytes]) -> None:
        for body in left:
            (await client.post("/predict", content=body, headers=headers)).raise_for_status()

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await asyncio.gather(*(keep_asking(client, left) for _ in range(CLIENTS)))


def cost(server: service_load.Server, bodies: list[bytes], headers: dict[str, str]) -> tuple[float, float]:
    """Milliseconds of the event loop and of the whole process per request."""
    before = cpu_seconds(server.process.pid)
    asyncio.run(send(server.url, bodies, headers))
    after = cpu_seconds(server.process.pid)
    loop, whole = (1e3 * (b - a) / len(bodies) for a, b in zip(before, after, strict=True))
    return loop, whole


def resident_bytes(process_id: int) -> int:
    """The memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert found
    return 1024 * int(found[1])


def cached_bytes(server: service_load.Server) -> float:
    """What the server says that its cache takes."""
    found = re.search(r"^condconv_cache_bytes (\S+)", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="of each case in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fill", type=int, default=4000, help="photos that fill the cache")
    options = parser.parse_args()
    photo, numbers = service_load.photo(), count()

    def others(amount: int) -> list[bytes]:
        """The same photo, each time in another file: what comes after a JPEG's end isn't looked at."""
        return [photo + next(numbers).to_bytes(8, "big") for _ in range(amount)]

    rounds: dict[str, list[tuple[float, float]]] = {"hit": [], "miss": [], "no cache": []}
    with_cache = service_load.Server(cache_bytes=CACHE_BYTES)
    without = service_load.Server()
    try:
        for server in (with_cache, without):
            asyncio.run(send(server.url, [*others(100), photo], {}))
        for _ in range(options.rounds):
            rounds["hit"].append(cost(with_cache, [photo] * options.requests, {}))
            rounds["miss"].append(cost(with_cache, others(options.requests), {}))
            rounds["no cache"].append(cost(without, others(options.requests), {}))
        asyncio.run(send(with_cache.url, others(500), {"Cache-Control": "no-store"}))
        resident, cached = resident_bytes(with_cache.process.pid), cached_bytes(with_cache)
        asyncio.run(send(with_cache.url, others(options.fill), {}))
        cached = cached_bytes(with_cache) - cached
        resident = resident_bytes(with_cache.process.pid) - resident
    finally:
        with_cache.stop()
        without.stop()
    print("| case | event loop, ms | process, ms |\n|---|---:|---:|")
    for case, measured in rounds.items():
        loop, whole = (median(one[column] for one in measured) for column in (0, 1))
        print(f"| {case} | {loop:.2f} | {whole:.2f} |")
    print(f"\n{options.fill} answers: {cached / options.fill:.0f} bytes each as counted, in all {cached / 1e6:.1f} MB;")
    print(f"the process grew by {resident / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
