"""Both Python clients and a server over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from condconv_serve import AsyncClient, Client, RoutingChange
from condconv_serve.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    InvalidParameter,
    ModelNotFound,
    RoutingNotFound,
    Unauthenticated,
    UnsupportedImage,
    VersionInUse,
)
from tests import pictures
from tests.e2e.server import MODEL, Server, sample_name, wait_for
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.fault.traffic import photos
from tests.unit.client.both import KINDS, opened

LIMIT = 8
"""Images that the server takes in a request; the client doesn't know it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(max_images_per_request=LIMIT, request_timeout=20, max_body_bytes=300_000) as running:
        yield running


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    with opened(request.param, server.url) as client:
        yield client
    wait_for(lambda: client_threads() == [])  # what a test has given up must not be counted in the next one


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return pictures.photo("coffee", (300, 200))


def test_an_answer_is_that_of_the_route(client: Any, server: Server, coffee: bytes) -> None:
    found = client.predict(coffee, top_k=1000, routing=True)
    (said,) = server.client.post("/predict?top_k=1000&routing=true", content=coffee).json()["predictions"]
    assert [scored.label for scored in found.classes] == [scored["label"] for scored in said["classes"]]
    np.testing.assert_allclose(
        [scored.probability for scored in found.classes],
        [scored["probability"] for scored in said["classes"]],
        atol=1e-6,
    )
    assert found.routing.layout.lists(found.routing.weights) == {
        block: pytest.approx(weights, abs=1e-6) for block, weights in said["routing"].items()
    }
    assert str(found.model) == f"{MODEL}/1"
    assert 0 < found.timings.inference <= found.timings.total < 60


def test_every_kind_of_image(client: Any, photo: np.ndarray, tmp_path: Path) -> None:
    """An array, and its files without loss, are one photo."""
    image = Image.fromarray(photo)
    image.save(file := tmp_path / "photo.png")
    data = file.read_bytes()
    with file.open("rb") as handle:
        found = client.predict([photo, image, file, str(file), data, bytearray(data), handle, io.BytesIO(data)])
    assert [result.probability for result in found] == [pytest.approx(found[0].probability, abs=1e-6)] * 8
    grey = np.asarray(image.convert("L"))
    flat, deep = client.predict([grey, np.dstack([grey] * 3)])
    assert flat.probability == pytest.approx(deep.probability, abs=1e-6)


def test_many_images(client: Any, server: Server) -> None:
    """More than the server takes at once, with some bad ones among them; nothing changes its place."""
    # Small ones, for the sake of time.
    taken = [pictures.jpeg(pictures.photo(list(pictures.PHOTOS)[n % 4], (24 + n, 16))) for n in range(16)]
    expected = [client.predict(image, top_k=1).top for image in taken]
    images = [b"bad" if n % 30 == 7 else taken[n % 16] for n in range(100)]
    found = client.predict(images, top_k=1, priority="low")
    assert [result.id for result in found] == [str(n) for n in range(100)]
    for n, result in enumerate(found):
        if n % 30 == 7:
            assert isinstance(result.error, UnsupportedImage)
        else:
            assert result.top.index == expected[n % 16].index
            assert result.top.probability == pytest.approx(expected[n % 16].probability, abs=1e-5)
    assert client.predict([taken[0], b"bad"])[1].error.status == 415


def test_images_that_are_too_large(client: Any, coffee: bytes) -> None:
    """Larger than the server takes, alone or together."""
    large = pictures.encode(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8), "PNG")
    half = pictures.encode(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8), "PNG")
    with pytest.raises(BodyTooLarge):
        client.predict(large)
    found = client.predict([half, coffee, large, half, coffee])
    assert [type(result.error).__name__ for result in found] == [
        "NoneType",
        "NoneType",
        "BodyTooLarge",
        *["NoneType"] * 2,
    ]


def test_answers_come_while_images_are_read(client: Any, coffee: bytes) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield coffee

    answers = client.predict_iter(endless(), top_k=1)
    for _ in range(20):
        assert next(answers).ok
    answers.close()
    assert read < 400, "only a few are read ahead"
    assert client.predict(coffee).ok


def test_routing_and_what_is_kept_of_it(client: Any, coffee: bytes, cat: bytes) -> None:
    one, other = client.routing([coffee, cat], top_k=2)
    assert one.insight.reference_images == 250
    assert len(one.insight.blocks) == len(one.routing.layout.blocks) == 8
    assert one.insight.blocks[0].strongest[0] == one.routing.by_block()["block_8"].argmax()
    again = client.recent_routing(one.request_id)
    assert [result.top.label for result in again] == [one.top.label, other.top.label]
    np.testing.assert_array_equal(again[1].routing.weights, other.routing.weights)
    with pytest.raises(RoutingNotFound):
        client.recent_routing("nobody-knows-this")
    live = client.live_routing(window="all", classes=3)
    assert live.images >= 2
    assert [block.block for block in live.blocks] == list(one.routing.layout.blocks)
    assert live.blocks[0].drift is not None
    assert live.reference is not None
    assert live.reference.images == 250
    assert len(live.classes.most_frequent) <= 3


def test_ablation(client: Any, coffee: bytes) -> None:
    found = client.ablation(coffee, blocks=["block_8"], experts=[0, 1], routing=True)
    assert [variant.name for variant in found.variants] == [
        "block_8 without expert 0",
        "block_8 without expert 1",
        "block_8 uniform",
    ]
    assert found.variants[1].changes == (RoutingChange(block="block_8", off=(1,)),)
    assert found.variants[1].routing.by_block()["block_8"][1] == 0
    own = client.ablation(coffee, variants=[RoutingChange(block="all", weights=(None, 0.5, 0.5, 0.5))] * 900)
    assert len(own.variants) == 900
    with pytest.raises(InvalidParameter, match="no CondConv block 'block_99'"):
        client.ablation(coffee, blocks=["block_99"])


def test_models(client: Any) -> None:
    (summary,) = client.models()
    assert (summary.name, summary.default, summary.versions) == (MODEL, True, ("1",))
    details = client.model(MODEL)
    assert (details.version, details.num_classes, details.routing_experts) == ("1", 1000, (4,) * 8)
    assert details.computed_by["engine"] == "numpy"
    assert details.files["weights.safetensors"]["sha256"]
    with pytest.raises(ModelNotFound, match="none"):
        client.model("none")


def test_health(client: Any) -> None:
    client.wait_until_ready(60)
    assert client.ready()
    with opened("sync", "http://127.0.0.1:9") as nobody:
        assert not nobody.ready()


def test_wrong_parameters(client: Any, coffee: bytes) -> None:
    for images in (coffee, [coffee], [coffee, coffee]):
        with pytest.raises(InvalidParameter, match="top_k must be from 1 to 1000"):
            client.predict(images, top_k=1001)
    with pytest.raises(InvalidParameter, match="priority"):
        client.predict(coffee, priority="urgent")


def test_time_that_a_server_does_not_have(client: Any, server: Server, coffee: bytes) -> None:
    """The server waits 20 seconds at most, and is asked for 25."""

    def refused() -> float:
        labels = {"front": "native", "route": "/predict", "method": "POST", "code": 422}
        return server.metrics().get(sample_name("condconv_requests_total", **labels), 0)

    before = refused()
    for timeout in (25, 60, 5):
        assert client.predict(coffee, timeout=timeout).ok
    wait_for(lambda: refused() > before)
    assert refused() == before + 1, "the client has learned of it"
    with server.holding(), pytest.raises(DeadlineExceeded):
        client.predict(coffee, timeout=0.3)


def test_many_threads_share_a_client(server: Server) -> None:
    taken = photos(8)
    with Client(server.url, concurrency=2) as client, ThreadPoolExecutor(8) as pool:
        alone = [client.predict(image).label for image in taken]
        found = list(pool.map(lambda n: [result.label for result in client.predict([taken[n % 8]] * 5)], range(24)))
    assert found == [[alone[n % 8]] * 5 for n in range(24)]


async def test_the_sync_client_works_in_a_running_event_loop(server: Server, coffee: bytes) -> None:
    with Client(server.url) as client:
        assert client.predict([coffee] * 20)[19].ok


async def test_many_tasks_share_a_client(server: Server) -> None:
    taken = photos(8)
    async with AsyncClient(server.url) as client:
        alone = [(await client.predict(image)).label for image in taken]
        found = await asyncio.gather(*(client.predict(image) for image in taken * 4))
        assert [result.label for result in found] == alone * 4

        async def endless() -> Any:
            while True:
                yield taken[0]

        async for result in client.predict_iter(endless()):
            assert result.ok
            break


async def test_a_cancelled_task_takes_its_images_back(server: Server, coffee: bytes) -> None:
    async with AsyncClient(server.url) as client:
        with server.holding():
            asked = asyncio.create_task(client.predict([coffee] * 40))
            await asyncio.to_thread(wait_for, lambda: server.metrics()["condconv_rows_in_flight"] > 0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.to_thread(wait_for, lambda: server.metrics()["condconv_queue_rows"] == 0)
        assert (await client.predict(coffee)).ok, "the client is as good as before"
    await asyncio.to_thread(wait_for, lambda: server.metrics()["condconv_rows_in_flight"] == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_versions(kind: str, tmp_path: Path, coffee: bytes) -> None:
    for version in (1, 2):
        write_fake(tmp_path, "tiny", version)
    keys = [
        {"name": name, "scopes": [scope], "sha256": sha256(name.encode()).hexdigest()}
        for name, scope in (("user", "predict"), ("boss", "admin"))
    ]
    settings: dict[str, Any] = {
        "model_store": tmp_path,
        "api_keys": json.dumps({"keys": keys}),
        "root_path": "/classify",
    }
    with Server(**settings) as server:
        url = f"{server.url}/classify"
        with opened(kind, url) as nobody, pytest.raises(Unauthenticated):
            nobody.predict(coffee)
        with opened(kind, url, api_key="user") as user:
            assert user.predict(coffee, version="2").top.index == 2
            with pytest.raises(Forbidden, match="scope admin"):
                user.load_version("tiny", "1")
        with opened(kind, url, api_key="boss") as boss:
            assert boss.load_version("tiny", "1").state == "serving"
            assert boss.set_alias("tiny", "stable", {"1": 1, "2": 1}).versions == {"1": 1, "2": 1}
            keys_of_users = "abcdefghij"
            found = [boss.predict(coffee, version="stable", split_key=key).model.version for key in keys_of_users * 2]
            assert found[:10] == found[10:]
            assert set(found) == {"1", "2"}
            assert boss.set_alias("tiny", "stable", "1").versions == {"1": 1}
            assert boss.predict([coffee, coffee], version="stable")[1].model.version == "1"
            with pytest.raises(VersionInUse):
                boss.unload_version("tiny", "1")
            assert boss.roll_back_alias("tiny", "stable").versions == {"1": 1, "2": 1}
            assert boss.aliases("tiny")["stable"].previous == {"1": 1}
            boss.delete_alias("tiny", "stable")
            assert boss.aliases("tiny") == {}
            assert boss.unload_version("tiny", "1").state != "serving"


def test_nobody_waits_for_what_is_given_up(server: Server, coffee: bytes) -> None:
    """Neither whoever leaves a loop, nor whoever closes the client; what is under way ends by itself."""
    client = Client(server.url)
    with contextlib.ExitStack() as held:

        def asked() -> Iterator[bytes]:
            yield coffee
            wait_for(lambda: client_threads() == [])  # it has been answered, so what is held is asked from now on
            held.enter_context(server.holding())
            yield from [coffee] * 199

        answers = client.predict_iter(asked())
        next(answers)
        wait_for(lambda: server.metrics()["condconv_rows_in_flight"] > 0)
        answers.close()
        client.close()
        assert client_threads() != []
        with pytest.raises(RuntimeError, match="closed"):
            client.predict(coffee)
    wait_for(lambda: client_threads() == [])


def test_no_thread_is_left(server: Server, coffee: bytes) -> None:
    with Client(server.url) as client:
        client.predict([coffee] * 40)
        wait_for(lambda: client_threads() == [])


def client_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("condconv-client")]


def test_threshold(client: Any, coffee: bytes) -> None:
    every = client.predict(coffee, top_k=1000)
    some = client.predict(coffee, top_k=1000, threshold=0.01)
    assert 0 < len(some.classes) < 1000
    assert some.classes == tuple(scored for scored in every.classes if scored.probability >= 0.01)
    nothing = client.routing(coffee, threshold=1.0)
    assert (nothing.ok, nothing.classes, nothing.top) == (True, (), None)


def test_features(client: Any, server: Server, coffee: bytes, cat: bytes) -> None:
    one, other, bad = client.features([coffee, cat, b"bad"], logits=True)
    said = np.frombuffer(server.client.post("/features?format=raw", content=coffee).content, "<f4")
    np.testing.assert_allclose(one.features, said, atol=1e-6)
    assert (one.features.dtype, other.logits.shape, bad.features) == (np.float32, (1000,), None)
    assert one.logits.argmax() == client.predict(coffee).top.index
    assert client.features(cat).logits is None


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose default model is a detector; it has a classifier, too."""
    write_colour_detector(store := tmp_path_factory.mktemp("detectors"))
    write_fake(store, "tiny", 1)
    with Server(model_store=store, default_model="colours", max_images_per_request=LIMIT) as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_detect(kind: str, detectors: Server) -> None:
    photo = np.full((80, 160, 3), 128, np.uint8)
    photo[20:30, 20:40], photo[50:60, 120:140] = (255, 0, 0), (0, 0, 255)
    images = [photo, b"bad", pictures.oriented(photo, 6, "PNG")] * 4
    with opened(kind, detectors.url) as client:
        found = client.detect(images, routing=True, score_threshold=0.3)
        assert [[one.label for one in result.objects] for result in found] == [["red", "blue"], [], ["red", "blue"]] * 4
        assert [type(result.error).__name__ for result in found[:3]] == ["NoneType", "UnsupportedImage", "NoneType"]
        for result in (found[0], found[2]):
            assert (result.width, result.height, str(result.model)) == (160, 80, "colours/1")
            boxes = [(one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax) for one in result.objects]
            np.testing.assert_allclose(boxes, [(20, 20, 40, 30), (120, 50, 140, 60)], atol=1e-3)
            assert result.routing.layout.experts == (3, 3)
        alone = client.detect(photo, max_detections=1)
        assert (len(alone.objects), alone.routing) == (1, None)
        assert [result.objects for result in client.detect_iter(images, score_threshold=0.3)] == [
            result.objects for result in found
        ]
        for model, ask in (("tiny", client.detect), ("colours", client.predict)):
            with pytest.raises(InvalidParameter, match=f"{model} is a model for "):
                ask(photo, model=model)
        with pytest.raises(InvalidParameter, match="score_threshold"):
            client.detect(photo, score_threshold=2)
        with detectors.holding(), pytest.raises(DeadlineExceeded):
            client.detect(photo, timeout=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_routing_and_ablation_of_a_detector(kind: str, detectors: Server) -> None:
    photo = np.full((80, 160, 3), 128, np.uint8)
    photo[20:30, 20:40], photo[50:60, 120:140] = (255, 0, 0), (0, 0, 255)
    with opened(kind, detectors.url) as client:
        one, bad = client.routing([photo, b"bad"], max_detections=1)
        assert (one.width, one.height, [found.label for found in one.objects], one.classes) == (160, 80, ["red"], ())
        assert [block.block for block in one.insight.blocks] == ["block_1", "block_2"]
        assert (bad.objects, bad.error.slug) == ((), "unsupported_image")
        assert repr(one) == "ImageRouting('0': 1 red)"
        (again, _) = client.recent_routing(one.request_id)
        assert (again.objects, again.width) == (one.objects, 160)
        (said,) = client.routing([photo], top_k=None, score_threshold=1.0)
        assert said.objects == ()

        found = client.detection_ablation(photo, blocks=["block_1"], experts=[0], routing=True, score_threshold=0.3)
        assert (found.width, found.height, [item.label for item in found.objects]) == (160, 80, ["red", "blue"])
        assert [variant.name for variant in found.variants] == ["block_1 without expert 0", "block_1 uniform"]
        for variant in found.variants:
            assert 0 <= variant.similarity <= 1
            assert {id(item.before) for item in (*variant.kept, *variant.lost)} == set(map(id, found.objects))
            for item in variant.kept:
                assert item.now.label == item.before.label
                assert item.now.score - item.before.score == pytest.approx(item.difference, abs=1e-6)
        assert found.variants[0].routing.by_block()["block_1"][0] == 0
        assert set(found.changed()) == {variant for variant in found.variants if variant.lost or variant.new}
        with pytest.raises(InvalidParameter, match="colours is a model for detection: ask it by detection_ablation"):
            client.ablation(photo, blocks=["block_1"])
        with pytest.raises(InvalidParameter, match="tiny is a model for classification: ask it by ablation"):
            client.detection_ablation(photo, model="tiny", blocks=["block_4"], experts=[0])
