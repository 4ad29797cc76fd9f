"""What each front costs: requests per second beside `/predict`, and the event loop's and the process's CPU time of one.

One server, 16 clients, each front in turn, several times. The clients share the machine's cores with the server, so the
CPU times say more than the throughput. The clients' own start isn't counted.

    python benchmarks/front_cost.py --requests 1000 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import service_load

from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc_messages import REQUEST

CLIENTS = 16
MODEL = "efficientnet-lite0-condconv-4e"
INFER = "/inference.GRPCInferenceService/ModelInfer"
FRONTS = ("/predict", "/v2, image", "gRPC, image", "/v2, pixels", "gRPC, pixels")
PATIENCE = 300.0
"""Most seconds that the clients may take; if they fail, they say so and send nothing."""
Ask = Callable[[], Awaitable[None]]


def tensors(photo: bytes) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The inputs of the Open Inference Protocol, and their raw bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    return {
        "image": ({"name": "image", "datatype": "BYTES", "shape": [1]}, joined([photo])),
        "pixels": ({"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}, pixels.tobytes()),
    }


def http_request(front: str, photo: bytes) -> bytes:
    """The bytes of a request over HTTP."""
    path, body, headers = "/predict", photo, "Content-Type: image/jpeg\r\n"
    if front != "/predict":
        declared, raw = tensors(photo)[front.rpartition(" ")[2]]
        declared["parameters"] = {"binary_data_size": len(raw)}
        outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [declared], "outputs": outputs}).encode()
        path, body = f"/v2/models/{MODEL}/infer", head + raw
        headers = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def over_http(port: int, request: bytes) -> Ask:
    """A connection that sends the request again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> None:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"\r\n(?i:content-length): (\d+)", head)
        assert length
        await reader.readexactly(int(length[1]))

    return ask


async def over_grpc(port: int, front: str, photo: bytes) -> Ask:
    """A channel that makes the call again and again."""
    declared, raw = tensors(photo)[front.rpartition(" ")[2]]
    message = REQUEST(model_name=MODEL, raw_input_contents=[raw])
    message.inputs.add(**declared)
    message.outputs.add(name="probabilities")
    data = message.SerializeToString()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary(INFER)

    async def ask() -> None:
        await call(data)

    return ask


def clients(front: str, ports: tuple[int, int], count: int, results: Any, go: Any) -> None:
    """Send requests, in a process of its own; reports that it is ready, and the seconds that they took."""

    async def run() -> float:
        photo, left = service_load.photo(), count
        request = b"" if front.startswith("gRPC") else http_request(front, photo)
        asks = [
            await (over_http(ports[0], request) if request else over_grpc(ports[1], front, photo))
            for _ in range(CLIENTS)
        ]
        for ask in asks:
            await ask()
        results.put(0.0)
        go.wait()
        started = time.monotonic()

        async def keep_asking(ask: Ask) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await ask()

        await asyncio.gather(*map(keep_asking, asks))
        return time.monotonic() - started

    results.put(asyncio.run(run()))


def cpu_seconds(process_id: int) -> tuple[float, float]:
    """CPU time of a process's main thread, which runs the event loop, and of the whole process."""
    times = []
    for path in (f"/proc/{process_id}/task/{process_id}/stat", f"/proc/{process_id}/stat"):
        fields = Path(path).read_text().rpartition(")")[2].split()
        times.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return times[0], times[1]


def measure(front: str, ports: tuple[int, int], process_id: int, count: int) -> tuple[float, float, float]:
    """Requests per second, and milliseconds of the event loop and of the process per request."""
    context = multiprocessing.get_context("spawn")
    results, go = context.Queue(), context.Event()
    process = context.Process(target=clients, args=(front, ports, count, results, go), daemon=True)
    process.start()
    results.get(timeout=PATIENCE)
    before = cpu_seconds(process_id)
    go.set()
    seconds = results.get(timeout=PATIENCE)
    after = cpu_seconds(process_id)
    process.join()
    loop, whole = (1e3 * (b - a) / count for a, b in zip(before, after, strict=True))
    return count / seconds, loop, whole


def main() -> None:
    """Measure all fronts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each front in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    server = service_load.Server(grpc_port=0)
    try:
        found = re.search(r"gRPC on 127\.0\.0\.1:(\d+)", server.log)
        assert found
        ports = int(server.url.rpartition(":")[2]), int(found[1])
        rounds: dict[str, list[tuple[float, float, float]]] = {front: [] for front in FRONTS}
        for _ in range(options.rounds):
            for front in FRONTS:
                rounds[front].append(measure(front, ports, server.process.pid, options.requests))
    finally:
        server.stop()
    print("| front | requests/s beside /predict | event loop, ms | process, ms |\n|---|---|---|---|")
    for front, measured in rounds.items():
        beside = median(one[0] / first[0] for one, first in zip(measured, rounds[FRONTS[0]], strict=True))
        loop, whole = (median(one[column] for one in measured) for column in (1, 2))
        print(f"| {front} | {beside:.2f} | {loop:.2f} | {whole:.1f} |")


if __name__ == "__main__":
    main()
