"""An open-loop load generator: requests start at a given rate whether or not earlier ones have been answered.

`wrk` waits for an answer before it asks again, and so can't offer more than a server takes. This sends bytes that were
prepared beforehand over plain sockets. Run it on uvloop, which takes a quarter of its processor time away.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WRK = re.compile(r"requests=(\d+) seconds=([\d.]+) errors=(\d+) p50=([\d.]+) p99=([\d.]+)")
_SCRIPT = """
local file = io.open("{photo}", "rb")
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("requests=%d seconds=%f errors=%d p50=%f p99=%f\\n", summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass
class Answers:
    """Status codes with the milliseconds that each answer took; `lost` counts requests without one, by reason.

    `times` are when answers came, by status, in seconds since the first request.
    """

    by_status: dict[int, list[float]] = field(default_factory=dict)
    times: dict[int, list[float]] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def rate(self, start: float, end: float, status: int = 200) -> float:
        """Answers per second that came between two times."""
        return sum(start <= time < end for time in self.times.get(status, ())) / (end - start)

    def percentile(self, q: float, statuses: Sequence[int] = (200,)) -> float:
        """Milliseconds."""
        times = sorted(t for status in statuses for t in self.by_status.get(status, ()))
        return times[min(int(q / 100 * len(times)), len(times) - 1)] if times else float("nan")


def request_bytes(path: str, body: bytes, host: str = "localhost") -> bytes:
    """An HTTP request, ready to send."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def exchange(connection: Connection, data: bytes) -> tuple[int, bytes, bytes]:
    """Send a request; status, headers and body of the answer.

    Raises:
        OSError, EOFError: the connection ended.
    """
    reader, writer = connection
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length, status = _LENGTH.search(head), _STATUS.match(head)
    assert length is not None
    assert status is not None
    return int(status[1]), head, await reader.readexactly(int(length[1]))


async def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], *, rate: float, seconds: float, patience: float = 60.0
) -> Answers:
    """Send requests in turn, `rate` per second for `seconds`, and wait for all answers."""
    answers = Answers()
    idle: list[Connection] = []

    async def send(data: bytes) -> None:
        sent = time.perf_counter()
        try:
            async with asyncio.timeout(patience):
                connection = idle.pop() if idle else await asyncio.open_connection(*address)
                status, head, _ = await exchange(connection, data)
        except (OSError, TimeoutError, EOFError) as error:
            answers.lost[type(error).__name__] += 1
            return
        ended = time.perf_counter()
        answers.by_status.setdefault(status, []).append((ended - sent) * 1e3)
        answers.times.setdefault(status, []).append(ended - started)
        if b"connection: close" in head.lower():
            connection[1].close()
        else:
            idle.append(connection)

    started = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(send(requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return answers


@dataclass(frozen=True)
class ClosedLoop:
    """What wrk found: rows per second, failed requests, and milliseconds."""

    rate: float
    errors: int
    p50: float
    p99: float


def wrk(
    url: str, photo: str, *, clients: int, seconds: float, script: str, content_type: str = "image/jpeg"
) -> ClosedLoop:
    """Let that many clients ask without pause.

    Args:
        url: what to post to.
        photo: path of the file to post.
        clients: connections.
        seconds: how long.
        content_type: what the file is.
        script: path where wrk's script may be written.
    """
    with open(script, "w") as file:
        file.write(_SCRIPT.format(photo=photo, content_type=content_type))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "60s", "-s", script, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _WRK.search(said)
    assert found, said
    requests, took, errors, p50, p99 = map(float, found.groups())
    return ClosedLoop((requests - errors) / took, int(errors), p50, p99)
