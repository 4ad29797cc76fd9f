"""gRPC over sockets: the same answers as over HTTP, one queue and one limit with it, and one end."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME
from condconv_serve.fronts.oip.grpc_messages import REQUEST, RESPONSE
from condconv_serve.http.server import REPEAT_SECONDS
from tests import pictures
from tests.contract.grpc_calls import retry_of, slug_of, taken_port
from tests.e2e.server import BUNDLE, FAKE, MODEL, ROOT, Server, environment, new_client, wait_for
from tests.e2e.tiny_models import light_store

PHOTOS = [
    pictures.jpeg(pictures.photo(name, (40 + step, 90 - step))) for name in ("coffee", "cat") for step in range(25)
]


@contextlib.contextmanager
def connected(server: Server) -> Iterator[grpc.Channel]:
    found = re.search(r"gRPC on (127\.0\.0\.1:\d+)", server.log)
    assert found, server.log
    with grpc.insecure_channel(found[1], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def infer(channel: grpc.Channel, photo: bytes, **options: Any) -> Any:
    request = REQUEST(model_name=MODEL, raw_input_contents=[joined([photo])])
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.outputs.add(name="probabilities")
    method = channel.unary_unary(
        f"/{NAME}/ModelInfer",
        request_serializer=REQUEST.SerializeToString,
        response_deserializer=RESPONSE.FromString,
    )
    return method(request, **options)


def test_the_same_answers_as_over_http_all_at_once() -> None:
    with (
        # A row's last digits depend on how many others are in its batch. And if the first batches are held up, the
        # last rows are expected much later than they come.
        Server(grpc_port=0, max_queue_rows=1000, max_batch_size=1, request_timeout=3600) as server,
        connected(server) as channel,
        ThreadPoolExecutor(50) as pool,
    ):
        calls = pool.map(lambda photo: infer(channel, photo), PHOTOS)
        expected = pool.map(lambda photo: server.client.post("/predict?top_k=5", content=photo).json(), PHOTOS)
        for response, predicted in zip(calls, expected, strict=True):
            row = np.frombuffer(response.raw_output_contents[0], np.float32)
            classes = predicted["predictions"][0]["classes"]
            assert [each["index"] for each in classes] == np.argsort(-row, kind="stable")[:5].tolist()
            np.testing.assert_allclose(
                row[[each["index"] for each in classes]], [each["probability"] for each in classes], atol=1e-6
            )


def test_one_queue_one_limit_and_a_flood_leaves_http_its_turn() -> None:
    with Server(grpc_port=0, max_queue_rows=4, streams=1, max_batch_size=1) as server, connected(server) as channel:
        codes: list[grpc.StatusCode] = []
        ending = threading.Event()

        def flood() -> None:
            while not ending.is_set():
                try:
                    infer(channel, PHOTOS[0], timeout=60)
                    codes.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.append(error.code())

        server.fault("slow 0.02")
        with ThreadPoolExecutor(24) as pool:
            for _ in range(24):
                pool.submit(flood)
            try:
                wait_for(lambda: len(codes) > 100 and len(set(codes)) > 1)
                assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
                # HTTP meets the same full queue, gets into it as well, and isn't kept waiting for an answer.
                heard: list[httpx.Response] = []

                def both_heard() -> bool:
                    heard.append(server.client.post("/predict", content=PHOTOS[0]))
                    return len(heard) >= 60 and len({response.status_code for response in heard}) > 1

                wait_for(both_heard)
                assert {response.status_code for response in heard} == {200, 429}
                assert max(response.elapsed.total_seconds() for response in heard) < 30
                assert server.client.get("/livez").elapsed.total_seconds() < 30
            finally:
                ending.set()


def test_a_full_queue_says_when_to_try_again() -> None:
    with (
        Server(grpc_port=0, max_queue_rows=1, streams=1) as server,
        connected(server) as channel,
        new_client(server.url) as another,
        ThreadPoolExecutor(2) as pool,
        server.holding(),
    ):
        pending: list[Any] = [pool.submit(another.post, "/predict", content=PHOTOS[0])]
        wait_for(lambda: server.metrics()["condconv_rows_in_flight"] == 1)
        pending.append(pool.submit(infer, channel, PHOTOS[1]))
        wait_for(lambda: server.metrics()["condconv_queue_rows"] == 1)
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, PHOTOS[2])
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert slug_of(caught.value) == "queue_full"
        assert (retry_of(caught.value) or 0) > 0
        server.fault()
        assert pending[0].result().status_code == 200
        assert pending[1].result().model_name == MODEL


def test_after_sigterm_it_takes_calls_for_a_while() -> None:
    """Load balancers need that time to notice."""
    ending = 128 + signal.SIGTERM
    with Server(grpc_port=0, drain_delay=3600, exit_code=ending) as server, connected(server) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        states = (response.status for response in watched)
        assert next(states) == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        assert next(states) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert infer(channel, PHOTOS[0]).model_name == MODEL
        time.sleep(REPEAT_SECONDS)
        server.send(signal.SIGTERM)
        assert server.wait() == ending


def test_sigterm_ends_both_ports_and_loses_nothing() -> None:
    with Server(grpc_port=0, streams=1, max_batch_size=1) as server, connected(server) as channel:
        with ThreadPoolExecutor(2) as pool:
            with server.holding():
                pending = [pool.submit(infer, channel, photo) for photo in PHOTOS[:2]]
                wait_for(lambda: server.metrics()["condconv_queue_rows"] == 1)
                server.terminate()
                wait_for(server.refuses_connections)
                assert not any(call.done() for call in pending)
            assert [call.result().model_name for call in pending] == [MODEL] * 2
        assert server.wait() == 0
        with connected(server) as another, pytest.raises(grpc.RpcError) as caught:
            infer(another, PHOTOS[0])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_the_end_does_not_wait_for_calls_longer_than_it_may() -> None:
    with (
        Server(grpc_port=0, shutdown_timeout=2, streams=1) as server,
        connected(server) as channel,
        ThreadPoolExecutor(1) as pool,
        server.holding(),
    ):
        pending = pool.submit(infer, channel, PHOTOS[0])
        wait_for(lambda: server.metrics()["condconv_rows_in_flight"] == 1)
        server.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            pending.result()
        assert (caught.value.code(), slug_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "draining")


def test_a_port_that_is_taken_ends_the_server_with_a_word() -> None:
    with taken_port() as port:
        found = subprocess.run(
            [sys.executable, "-m", FAKE, "serve", "--port", "0"],
            env=environment(grpc_port=port, model_store=light_store(BUNDLE)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (found.returncode, "Traceback" in found.stderr) == (1, False)
    assert f"Can't listen on 127.0.0.1:{port}: Address already in use" in found.stderr


def test_a_server_without_a_model_that_works_ends_with_its_word_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(light_store(BUNDLE), store)
    for weights in store.rglob("weights.safetensors"):
        weights.write_bytes(b"damaged")
    found = subprocess.run(
        [sys.executable, "-m", FAKE, "serve", "--port", "0"],
        env=environment(grpc_port=0, model_store=store, engine="tensorflow"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, "Traceback" in found.stderr) == (1, False), found.stderr
    assert "gRPC on 127.0.0.1:" in found.stderr
