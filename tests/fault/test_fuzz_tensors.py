"""Fuzzed requests of the tensor protocols are answered or refused: no 5xx, no hang, no growth of memory.

`FUZZ_TENSORS` says how many (`make fuzz` sends 50,000), `FUZZ_SEED` which ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from condconv_serve.domain.manifest import PreprocessingSpec
from tests.e2e.server import Server
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.fault import fuzzing_tensors
from tests.fault.fuzzing_requests import CLASSIFIER, DETECTOR, SIDE, GrpcRequest, HttpRequest, photo

COUNT = int(os.environ.get("FUZZ_TENSORS", "600"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CLIENTS = 8
PATIENCE = 60.0
"""Seconds on the clock for each; a busy machine needs some."""
MAX_GROWTH = 48 * 2**20
"""Bytes of the server's memory, from the first tenth to the end. A lost body of 50 kB each would be far more."""
REFUSED = {400, 404, 413, 415, 431}
NEVER = {
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED),
    *(grpc.StatusCode.DATA_LOSS, grpc.StatusCode.ABORTED, grpc.StatusCode.UNIMPLEMENTED),
}
RIGHT = {"", "open_inference ", "tensorflow_serving "}
LEFT = "left"
"""The outcome of requests whose client left."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    write_fake(store, CLASSIFIER.name, 1)
    small = PreprocessingSpec(
        transform="stretch", image_size=SIDE, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3
    )
    write_colour_detector(store, name=DETECTOR.name, preprocessing=small)
    with Server(model_store=store, grpc_port=0, max_body_bytes=2**20) as running:
        yield running


class Connection:
    """A connection over HTTP that is opened anew when it ends."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: HttpRequest) -> tuple[int, bytes] | None:
        """Status and body of the answer; None if the request was broken off."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        fields = [("Host", "x"), ("Content-Length", str(len(request.body))), *request.headers]
        head = f"POST {request.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        writer.write(head.encode() + b"\r\n" + request.body[: request.sent])
        if request.sent is not None:
            self.close()
            return None
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", answer, re.IGNORECASE)
        assert length is not None, answer
        body = await reader.readexactly(int(length[1]))
        if b"connection: close" in answer.lower():
            self.close()
        return int(answer[9:12]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def outcome_of(request: HttpRequest | GrpcRequest, http: Connection, channel: grpc.aio.Channel) -> str:
    """What came of a request, in a word; begins with "wrong" if that must not be."""
    if isinstance(request, GrpcRequest):
        try:
            call: Any = channel.unary_unary(request.path)
            await call(request.message)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            asked_for = code is grpc.StatusCode.DEADLINE_EXCEEDED and b"timeout" in request.message
            wrong = (
                code in NEVER or not error.details() or (code is grpc.StatusCode.DEADLINE_EXCEEDED and not asked_for)
            )
            return f"wrong: {code.name}: {error.details()}" if wrong else code.name
        return "OK"
    found = await http.ask(request)
    if found is None:
        return LEFT
    status, body = found
    if status == 200:
        return "200"
    says = json.loads(body).get("error")
    asked_for = status in (429, 504) and (b"timeout" in request.body or "timeout" in request.path)
    good = (status in REFUSED or asked_for) and isinstance(says, str) and says
    return str(status) if good else f"wrong: {status}: {body[:300]!r}"


async def fuzz(server: Server) -> tuple[Counter[str], dict[str, str], int]:
    """Outcomes, failures by request, and by how much the server's memory grew."""
    outcomes: Counter[str] = Counter()
    failures: dict[str, str] = {}
    numbers, early = iter(range(COUNT)), 0

    async def client(channel: grpc.aio.Channel) -> None:
        nonlocal early
        http = Connection(server.address)
        for number in numbers:
            request = fuzzing_tensors.fuzzed(number, seed=SEED)
            try:
                async with asyncio.timeout(PATIENCE):
                    outcome = await outcome_of(request, http, channel)
            except (TimeoutError, OSError, EOFError, ValueError) as error:
                outcome = f"wrong: {error!r}"
                http.close()
            outcomes[outcome.partition(":")[0]] += 1
            if outcome.startswith("wrong"):
                failures[f"{number} ({request.name})"] = outcome
            if number == COUNT // 10:
                early = resident_bytes(server.process_id)
        http.close()

    async with grpc.aio.insecure_channel(server.grpc) as channel:
        await asyncio.gather(*(client(channel) for _ in range(CLIENTS)))
    return outcomes, failures, resident_bytes(server.process_id) - early


def resident_bytes(process_id: int) -> int:
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fuzzed_tensors_are_answered_or_refused(server: Server) -> None:
    outcomes, failures, growth = asyncio.run(fuzz(server))
    print(f"\n{outcomes.total()} requests: {dict(outcomes.most_common())}; memory grew by {growth / 2**20:.1f} MB")
    assert not failures, "\n".join(f"{name}: {what}" for name, what in list(failures.items())[:50])
    assert outcomes.total() == COUNT
    assert growth < MAX_GROWTH
    # Lies that never get past the front door, or never are any, would prove nothing.
    for name, share in (("200", 30), ("400", 5), ("OK", 30), ("INVALID_ARGUMENT", 5), ("413", 500), ("404", 1000)):
        assert outcomes[name] > COUNT // share - 5, name
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert client.post(f"/predict?model={CLASSIFIER.name}", content=photo()).status_code == 200


@pytest.mark.parametrize("number", range(8))
def test_a_number_always_gives_the_same_request(number: int) -> None:
    first = fuzzing_tensors.fuzzed(number, seed=SEED)
    assert first == fuzzing_tensors.fuzzed(number, seed=SEED)
    assert first != fuzzing_tensors.fuzzed(number + 16, seed=SEED)


def test_right_requests_are_answered(server: Server) -> None:
    """What is damaged is right before: else nothing of it would be read."""

    async def ask() -> set[str]:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            http = Connection(server.address)
            requests = (fuzzing_tensors.fuzzed(number, seed=SEED) for number in range(600))
            right = [request for request in requests if request.name.removesuffix("right") in RIGHT]
            assert len({request.path for request in right}) == 8, "each verb, of each model over REST"
            found = {await outcome_of(request, http, channel) for request in right}
            http.close()
            return found

    assert asyncio.run(ask()) == {"200", "OK"}
