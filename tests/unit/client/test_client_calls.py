"""What both clients send, and what they make of answers."""

import asyncio
import io
import itertools
import json
import ssl
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve import RoutingChange, Variant
from condconv_serve.domain import Box, ClassScore, DetectedObject, Timings
from condconv_serve.errors import (
    BodyTooLarge,
    ConfigurationError,
    CorruptImage,
    InvalidParameter,
    MissingImage,
    ModelNotFound,
    QueueFull,
    RemoteFailed,
    ServiceError,
    Unauthenticated,
    UnsupportedImage,
)
from condconv_serve.fronts.native.problems import STATUS
from condconv_serve.results import ImageDetections, ImagePrediction
from tests.unit.client.answers_of_ours import entry, for_each_image, images_of, predictions, problem
from tests.unit.client.both import KINDS, answered_by, opened


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def seen():
    """Requests, as they came."""
    return []


@pytest.fixture
def client(kind, seen):
    """A client whose images get an answer each; `client.answer` may be another function."""

    def answer(request):
        seen.append(request)
        return answers[-1](request)

    answers = [for_each_image]
    with answered_by(kind, answer, api_key="secret") as client:
        client.answer = answers.append
        yield client


def test_one_image(client, seen):
    found = client.predict(b"\7")
    assert found.classes == (ClassScore(7, "class 7", "n1", 0.75),)
    assert (found.id, found.filename, str(found.model), found.request_id) == ("0", None, "m/3", "r1")
    assert (found.timings, found.batch_size, found.routing) == (
        Timings(decode=1e-3, queue=2e-3, inference=3.5e-3, total=7e-3),
        4,
        None,
    )
    (request,) = seen
    assert (request.method, request.url.path, request.content) == ("POST", "/predict", b"\7")
    assert request.headers["X-API-Key"] == "secret"
    assert request.headers["User-Agent"].startswith("condconv-serve/")
    assert str(request.url.query, "ascii") == ""


def test_options_are_parameters(client, seen):
    client.predict(
        b"\1", model="m", version="stable", top_k=3, threshold=0.25, routing=True, priority="low", split_key="ann"
    )
    assert dict(seen[0].url.params) == {
        "model": "m",
        "version": "stable",
        "top_k": "3",
        "threshold": "0.25",
        "routing": "true",
        "priority": "low",
    }
    assert seen[0].headers["X-Split-Key"] == "ann"
    client.predict(b"\1", timeout=25)
    assert 10_000 < int(seen[1].url.params["timeout_ms"]) <= 25_000


@pytest.mark.parametrize(
    ("options", "told"), [({}, None), ({"no_cache": False}, None), ({"no_cache": True}, "no-cache")]
)
def test_an_answer_from_the_cache_can_be_refused(options, told, client, seen):
    client.predict([b"\1", b"\2"], split_key="ann", **options)
    (request,) = seen
    assert request.headers.get("Cache-Control") == told
    assert request.headers["X-Split-Key"] == "ann"
    assert str(request.url.query, "ascii") == ""


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"topk": 3}, TypeError, r"predict\(\) got an unexpected keyword argument 'topk'\. It takes .*top_k"),
        ({"timeout": 0}, InvalidParameter, "timeout is a time in seconds"),
        ({"timeout": float("inf")}, InvalidParameter, "timeout is a time in seconds"),
        ({"timeout": 1e10}, InvalidParameter, "timeout is a time in seconds"),
        ({"timeout": 10**400}, InvalidParameter, "timeout is a time in seconds"),
        ({"timeout": "5"}, InvalidParameter, "timeout is a time in seconds"),
        ({"split_key": "caf\xe9"}, InvalidParameter, "split_key"),
        ({"split_key": "a\nb"}, InvalidParameter, "split_key"),
        ({"split_key": 5}, InvalidParameter, "split_key"),
        ({"no_cache": "yes"}, InvalidParameter, "no_cache is True or False"),
        ({"no_cache": None}, InvalidParameter, "no_cache is True or False"),
        ({"timeout": True}, InvalidParameter, "timeout is a time in seconds"),
        ({"on_error": "ignore"}, InvalidParameter, "keep or raise"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_sent(options, error, says, client, seen):
    for ask in (lambda: client.predict(b"\1", **options), lambda: client.predict_iter([b"\1"], **options)):
        with pytest.raises(error, match=says):
            ask()
    assert seen == []
    with pytest.raises(TypeError, match=r"routing\(\) got an unexpected keyword argument 'routing'"):
        client.routing(b"\1", routing=True)


def test_many_images_keep_their_order(client, seen):
    images = [bytes([n]) for n in range(50)]
    for given in (images, tuple(images), iter(images), (image for image in images)):
        seen.clear()
        found = client.predict(given, top_k=1)
        assert [result.classes[0].index for result in found] == list(range(50))
        assert [result.id for result in found] == [str(n) for n in range(50)]
        sizes = sorted(len(images_of(request)) for request in seen)
        if isinstance(given, list | tuple):
            assert sizes == [2, 16, 16, 16]
        assert (sum(sizes), max(sizes) <= 16) == (50, True)
        assert {str(request.url.query, "ascii") for request in seen} == {"top_k=1"}
    assert list(client.predict_iter(images))[49].classes[0].index == 49
    assert client.predict([]) == []


def test_a_thousand_images(client, seen):
    found = client.predict([bytes([n % 256]) for n in range(1000)])
    assert [result.classes[0].index for result in found] == [n % 256 for n in range(1000)]
    assert len(seen) == 63


def test_a_slow_source_keeps_no_answer_waiting(client, seen):
    """Each answer comes at the latest when the next image or two are read, though a request holds 16."""
    lags, answers = [], []

    def camera():
        for n in range(12):
            end = time.monotonic() + 20
            while sum(len(images_of(request)) for request in seen) < n and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.1)
            lags.append(n - len(answers))
            yield bytes([n])

    for answer in client.predict_iter(camera()):
        answers.append(answer.classes[0].index)
    assert answers == list(range(12))
    assert sorted(lags)[len(lags) // 2] <= 2


def test_asynchronous_iterables_are_images_too(seen):
    async def photos():
        for n in range(20):
            await asyncio.sleep(0)
            yield bytes([n])

    with answered_by("async", for_each_image) as client:
        assert [result.classes[0].index for result in client.predict(photos())] == list(range(20))


def test_names_of_files_stay_here(client, seen, tmp_path):
    (file := tmp_path / "Ann\u2019s passport.jpg").write_bytes(b"\5")
    with file.open("rb") as handle:
        found = client.predict([file, str(file), io.BytesIO(b"\6"), handle])
    assert [result.filename for result in found] == [str(file), str(file), None, str(file)]
    assert b"passport" not in seen[0].content + seen[0].url.raw_path
    client.predict(file)
    assert b"passport" not in seen[1].content + seen[1].url.raw_path


def test_folders_patterns_and_arrays_of_many(client, seen, tmp_path):
    client.answer(lambda request: predictions(*(entry(1) for _ in images_of(request))))
    for name in ("a.jpg", "b.png", "more/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    names = [str(tmp_path / name) for name in ("a.jpg", "b.png", "more/c.jpg")]
    for folder in (tmp_path, str(tmp_path), f"{tmp_path}/**/*.[jp]*"):
        assert [result.filename for result in client.predict(folder)] == names
    assert images_of(seen[0]) == [b"a.jpg", b"b.png", b"more/c.jpg"]
    found = list(client.predict_iter([b"x", tmp_path / "more", tmp_path / "a.jpg"]))
    assert [(result.id, result.filename) for result in found] == [("0", None), ("1", names[2]), ("2", names[0])]
    arrays = np.zeros((3, 4, 5, 3), np.uint8)
    assert len(client.predict(arrays)) == 3
    assert client.predict(arrays[0]).ok
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingImage, match="this folder is empty"):
        client.predict(tmp_path / "empty")
    with pytest.raises(InvalidParameter, match="one image"):
        client.ablation(tmp_path)


def test_tensors_of_other_libraries(client, seen):
    class Tensor:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

    client.answer(lambda request: predictions(*(entry(1) for _ in images_of(request))))
    assert client.predict(Tensor(np.zeros((4, 5, 3), np.uint8))).ok
    assert len(client.predict([Tensor(np.zeros((4, 5), np.uint8))] * 2)) == 2


def test_images_that_change_while_others_are_read(client, seen):
    """A generator may fill one array again and again, and close each file."""

    def frames():
        frame = np.zeros((2, 2), np.uint8)
        for shade in range(5):
            frame[:] = shade
            yield frame
        with io.BytesIO(b"\5") as file:
            yield file

    def shade(image):
        return 5 if image == b"\5" else int(np.asarray(Image.open(io.BytesIO(image)))[0, 0])

    def answer(request):
        return predictions(*(entry(shade(image)) for image in images_of(request)))

    client.answer(answer)
    assert [result.classes[0].index for result in client.predict(frames())] == [0, 1, 2, 3, 4, 5]


def test_large_images_share_no_request(client, seen):
    client.answer(lambda request: predictions(*(entry(0) for _ in images_of(request))))
    client.predict([bytes(9 * 2**20)] * 3)
    assert [len(images_of(request)) for request in seen] == [1, 1, 1]


@pytest.mark.parametrize(
    ("refusal", "most"),
    [
        (lambda: problem("too_many_images", 413), 5),
        (lambda: problem("body_too_large", 413), 3),
        (lambda: httpx.Response(413, html="<h1>413 Request Entity Too Large</h1>"), 3),
    ],
    ids=["too many images", "too large", "too large for a proxy"],
)
def test_a_server_that_takes_fewer(refusal, most, client, seen):
    def answer(request):
        return for_each_image(request) if len(images_of(request)) <= most else refusal()

    client.answer(answer)
    images = [bytes([n]) for n in range(60)]
    assert [result.classes[0].index for result in client.predict(images)] == list(range(60))
    refused = sum(len(images_of(request)) > most for request in seen)
    seen.clear()
    client.predict(bytes([n]) for n in range(60))
    assert refused > 0
    assert not any(len(images_of(request)) > most for request in seen), "it is remembered"


def test_an_image_that_is_too_large_for_a_proxy(client):
    def answer(request):
        if len(request.content) > 3000:
            return httpx.Response(413, html="<h1>413 Request Entity Too Large</h1>")
        return for_each_image(request)

    client.answer(answer)
    found = client.predict([b"\1", b"\2" * 4000, b"\3"])
    assert [result.ok for result in found] == [True, False, True]
    assert isinstance(found[1].error, BodyTooLarge)
    assert (
        str(found[1].error) == "The server at http://server, or a proxy before it, takes no request of so many bytes."
    )
    with pytest.raises(BodyTooLarge):
        client.predict(b"\2" * 4000)


def test_a_bad_image_among_good_ones(client, tmp_path):
    def answer(request):
        error = {"slug": "corrupt_image", "detail": "It is truncated.", "status": 422}
        return predictions(
            *({"id": "0", "error": error} if image == b"bad" else entry(image[0]) for image in images_of(request))
        )

    client.answer(answer)
    found = client.predict([b"\1", b"bad", tmp_path / "none.jpg", b"\2"])
    assert [result.ok for result in found] == [True, False, False, True]
    assert [result.id for result in found] == ["0", "1", "2", "3"]
    assert isinstance(found[1].error, CorruptImage)
    assert (str(found[1].error), found[1].error.status, found[1].error.request_id) == ("It is truncated.", 422, "r1")
    assert isinstance(found[2].error, MissingImage)
    assert found[2].filename == str(tmp_path / "none.jpg")
    assert found[3].classes[0].index == 2
    with pytest.raises(CorruptImage, match=r"^Image 1: It is truncated\.$"):
        client.predict([b"\1", b"bad", b"\2"], on_error="raise")
    passed = []
    with pytest.raises(MissingImage, match=r"none\.jpg"):
        passed.extend(client.predict_iter([b"\1", tmp_path / "none.jpg"], on_error="raise"))


def test_a_bad_image_alone(client, tmp_path):
    client.answer(lambda request: problem("unsupported_image", 415))
    with pytest.raises(UnsupportedImage) as raised:
        client.predict(b"bad")
    assert (raised.value.status, raised.value.request_id) == (415, "r9")
    (found,) = client.predict([b"bad"])
    assert isinstance(found.error, UnsupportedImage)
    with pytest.raises(MissingImage):
        client.predict(tmp_path / "none.jpg")
    with pytest.raises(TypeError, match="not int"):
        client.predict([1, 2])


def test_what_is_wrong_with_the_request_is_raised(client):
    client.answer(lambda request: problem("model_not_found", 404, "There is no model x."))
    for images in (b"\1", [b"\1"], [b"\1", b"\2"], [bytes([n]) for n in range(40)]):
        with pytest.raises(ModelNotFound, match=r"^There is no model x\.$") as raised:
            client.predict(images)
        assert (raised.value.status, raised.value.request_id) == (404, "r9")


def test_every_slug_becomes_its_class(kind):
    for slug, status in STATUS.items():
        with answered_by(kind, lambda _, slug=slug, status=status: problem(slug, status), retries=0) as client:
            with pytest.raises(ServiceError, match=r"^What was wrong\.$") as raised:
                client.predict(b"\1")
            assert (raised.value.slug, raised.value.status) == (slug, status)


def test_how_long_to_wait_is_known(kind):
    for more, expected in (({"retry_after": 2.5}, 2.5), ({}, None)):
        with answered_by(kind, lambda _, more=more: problem("queue_full", 429, **more), retries=0) as client:
            with pytest.raises(QueueFull) as raised:
                client.predict(b"\1")
            assert raised.value.retry_after == expected


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda: problem("brand_new", 418, "Something new."), r"^Something new\.$"),
        (lambda: problem("method_not_allowed", 405, "It takes GET."), r"^It takes GET\.$"),
        (
            lambda: httpx.Response(502, html="<h1>Bad gateway</h1>"),
            "answered 502, but this is no answer of condconv",
        ),
        (lambda: httpx.Response(200, html="<h1>log in</h1>"), "answered 200, but this is no answer"),
        (lambda: httpx.Response(200, json={}), "answered 200, but this is no answer"),
        (lambda: predictions(), "answered 200, but this is no answer"),
        (lambda: predictions(entry(1), entry(2)), "answered 200, but this is no answer"),
        (lambda: predictions(entry(1, classes=[{"index": "1"}])), "answered 200, but this is no answer"),
        (lambda: httpx.Response(500, json=[1]), "answered 500, but this is no answer"),
        (lambda: httpx.Response(500), "answered 500, but this is no answer"),
        (
            lambda: httpx.Response(308, headers={"Location": "https://server/predict"}),
            r"answered 308.* now at https://server/predict; use that address",
        ),
    ],
)
def test_other_answers(answer, says, kind):
    with answered_by(kind, lambda _: answer(), retries=0) as client, pytest.raises(RemoteFailed, match=says) as raised:
        client.predict(b"\1")
    assert raised.value.status == answer().status_code


def test_routing(client, seen):
    insight = {
        "blocks": [{"block": "a", "entropy": 0.5, "strongest": [1, 0]}],
        "unusual": True,
        "class_profile": {"index": 3, "images": 9, "source": "live"},
    }
    client.answer(
        lambda request: predictions(entry(3, routing={"a": [0.25, 0.5], "b": [0.1, 0.2, 0.3]}, insight=insight))
    )
    found = client.routing(b"\3", top_k=1)
    assert (seen[0].url.path, dict(seen[0].url.params)) == ("/routing", {"top_k": "1"})
    assert found.routing.layout.experts == (2, 3)
    assert found.routing.weights.dtype == np.float32
    np.testing.assert_array_equal(found.routing.weights, np.array([[0.25, 0.5, 0], [0.1, 0.2, 0.3]], np.float32))
    np.testing.assert_array_equal(found.routing.by_block()["a"], np.array([0.25, 0.5], np.float32))
    assert (found.insight.unusual, found.insight.blocks[0].strongest, found.insight.class_profile.images) == (
        True,
        (1, 0),
        9,
    )
    assert next(iter(client.routing_iter([b"\3"]))).insight == found.insight
    assert isinstance(found, ImagePrediction)


def test_detect(client, seen):
    def edges(*values):
        return dict(zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True))

    one = {"index": 2, "label": "cup", "synset": "n1", "score": 0.75, "box": edges(8, 4.5, 16, 9)}
    one |= {"box_normalized": edges(0.5, 0.25, 1, 0.5)}
    body = {
        "id": "0",
        "width": 16,
        "height": 18,
        "detections": [one, {name: value for name, value in one.items() if name != "synset"} | {"score": 0.5}],
        "routing": {"a": [0.25, 0.5]},
        "timings_ms": entry(0)["timings_ms"],
        "batch_size": 2,
    }
    client.answer(lambda request: predictions(body))
    options = {"score_threshold": 0.3, "iou_threshold": 0.6, "max_detections": 7, "routing": True, "model": "m"}
    found = client.detect(b"\1", **options)
    assert (seen[0].url.path, dict(seen[0].url.params)) == (
        "/detect",
        {"score_threshold": "0.3", "iou_threshold": "0.6", "max_detections": "7", "routing": "true", "model": "m"},
    )
    assert type(found) is ImageDetections
    box, normalized = Box(8, 4.5, 16, 9), Box(0.5, 0.25, 1, 0.5)
    cup = DetectedObject(index=2, label="cup", synset="n1", score=0.75, box=box, box_normalized=normalized)
    assert found.objects == (cup, replace(cup, synset=None, score=0.5))
    assert (found.width, found.height, found.batch_size, str(found.model)) == (16, 18, 2, "m/3")
    assert found.routing.weights.tolist() == [[0.25, 0.5]]
    client.answer(lambda request: predictions({"id": "0", "error": {"slug": "corrupt_image", "detail": "It is cut."}}))
    (failed,) = client.detect_iter([b"\1"])
    assert (failed.objects, failed.width, failed.error.slug) == ((), None, "corrupt_image")
    with pytest.raises(TypeError, match=r"detect\(\) got an unexpected keyword argument 'top_k'"):
        client.detect(b"\1", top_k=1)
    for wrong in ({"detections": [{**one, "box": {"xmin": 0}}]}, {"detections": 3}, {"width": "16"}):
        client.answer(lambda request, wrong=wrong: predictions({**body, **wrong}))
        with pytest.raises(RemoteFailed, match="no answer of condconv-serve"):
            client.detect(b"\1")


def test_features(client, seen):
    body = {"id": "0", "features": [0.1, 2.5], "logits": [1.5], "timings_ms": entry(0)["timings_ms"], "batch_size": 2}
    client.answer(lambda request: predictions(body))
    found = client.features(b"\1", logits=True, model="m")
    assert (seen[0].url.path, dict(seen[0].url.params)) == ("/features", {"logits": "true", "model": "m"})
    assert (found.features.dtype, found.logits.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(found.features, np.array([0.1, 2.5], np.float32))
    assert (found.logits.tolist(), found.batch_size, str(found.model)) == ([1.5], 2, "m/3")
    client.answer(lambda request: predictions({"id": "0", "error": {"slug": "corrupt_image", "detail": "It is cut."}}))
    (failed,) = client.features_iter([b"\1"])
    assert (failed.features, failed.error.slug) == (None, "corrupt_image")
    with pytest.raises(TypeError, match=r"features\(\) got an unexpected keyword argument 'top_k'"):
        client.features(b"\1", top_k=1)


def test_ablation(client, seen):
    change = {"block": "a", "off": [0]}
    top = {"index": 1, "label": "x", "probability": 0.5}
    variant = {
        "name": "v",
        "changes": [change],
        "probability": 0.25,
        "difference": -0.25,
        "top": top,
        "same_top": False,
    }
    body = {
        "model": {"name": "m", "version": "1"},
        "id": "0",
        "top": top,
        "routing": {"a": [0.5, 0.25]},
        "variants": [{**variant, "routing": {"a": [0, 0.25]}}, variant],
        "timings_ms": {"decode": 1, "queue": 1, "inference": 1, "total": 3},
    }
    client.answer(lambda request: httpx.Response(200, json=body))
    variants = [
        RoutingChange(block="a", off=(0,)),
        Variant(
            changes=(RoutingChange(block="a", uniform=True), RoutingChange(block="b", weights=(None, 0.5))), name="n"
        ),
    ]
    found = client.ablation(b"\1", variants=variants, routing=True, model="m", timeout=25)
    sent = json.loads(seen[0].content)
    assert 10_000 < sent.pop("timeout_ms") <= 25_000
    assert sent == {
        "images": ["AQ=="],
        "model": "m",
        "uniform": True,
        "routing": True,
        "variants": [
            {"changes": [{"block": "a", "off": [0]}]},
            {"changes": [{"block": "a", "uniform": True}, {"block": "b", "weights": [None, 0.5]}], "name": "n"},
        ],
    }
    assert found.variants[0].changes == (RoutingChange(block="a", off=(0,)),)
    assert found.variants[0].routing.weights.tolist() == [[0, 0.25]]
    assert (found.variants[1].routing, found.changed(), found.top.label) == (None, found.variants, "x")
    client.ablation(b"\1", blocks=["a"], experts=np.arange(2), uniform=False)
    assert json.loads(seen[1].content)["experts"] == [0, 1]
    with pytest.raises(TypeError, match="top_k"):
        client.ablation(b"\1", top_k=1)


LETTERS = RoutingChange(block="a", off=("b",))  # type: ignore[arg-type]  # experts have numbers


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda client: client.ablation(b"\1", blocks="block_8"), "blocks is a list of names"),
        (lambda client: client.ablation(b"\1", blocks=8), "blocks is a list of names"),
        (lambda client: client.ablation(b"\1", experts=2), "experts one of whole numbers"),
        (lambda client: client.ablation(b"\1", experts=["two"]), "experts one of whole numbers"),
        (lambda client: client.ablation(b"\1", experts=[1.5]), "experts one of whole numbers"),
        (lambda client: client.ablation(b"\1", variants=RoutingChange(block="a", off=(0,))), "variants one of Variant"),
        (lambda client: client.ablation(b"\1", variants=["a"]), "variants one of Variant"),
        (lambda client: client.ablation(b"\1", variants=[LETTERS]), "variants one of"),
        (lambda client: client.model(None), "Names and versions are text that is not empty, not None"),
        (lambda client: client.model(""), "Names and versions are text that is not empty"),
        (lambda client: client.recent_routing(b"r"), "Names and versions are text"),
        (lambda client: client.delete_alias("m", ".."), r"'\.\.' can't be a name"),
        (lambda client: client.load_version(".", "1"), r"'\.' can't be a name"),
        (lambda client: client.set_alias("m", "a", {"1": float("nan")}), "The request can't be written: .*JSON"),
        (lambda client: client.set_alias("m", "a", {"1": {1}}), "The request can't be written: .*JSON"),
        (lambda client: client.predict(b"\1", model="\ud800"), "The request can't be written"),
        (lambda client: client.predict(b"\1", model="m" * 100_000), "The request can't be written: .*too long"),
        (lambda client: client.set_alias("m", "a", ["1"]), "An alias points at a version"),
        (lambda client: client.wait_until_ready("5"), "seconds is a time in seconds"),
    ],
)
def test_arguments_of_a_wrong_kind(ask, says, client, seen):
    with pytest.raises(InvalidParameter, match=says):
        ask(client)
    assert seen == []


def test_health(client):
    client.answer(lambda request: problem("not_ready", 503, retry_after=30))
    assert client.ready() is False
    with pytest.raises(ServiceError):
        client.wait_until_ready(0.01)
    states = [problem("not_ready", 503), httpx.Response(502, html=""), httpx.Response(200, json={"status": "ok"})]
    client.answer(lambda request: states.pop(0) if len(states) > 1 else states[0])
    client.wait_until_ready(60)
    assert client.ready() is True
    client.answer(lambda request: problem("unauthenticated", 401))
    with pytest.raises(Unauthenticated):
        client.ready()


@pytest.mark.parametrize(
    "page", [{"html": "<h1>We are back soon</h1>"}, {"json": {"status": "away"}}, {"content": b""}]
)
def test_a_proxys_page_is_no_sign_of_readiness(client, page):
    client.answer(lambda request: httpx.Response(200, **page))
    assert client.ready() is False
    client._sender.policy.clock = itertools.count(step=25).__next__  # after one answer all the time has passed
    with pytest.raises(RemoteFailed, match="no answer of condconv-serve"):
        client.wait_until_ready(100)


def test_waiting_for_a_server_that_hangs(kind):
    def hang(request):
        given.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("timed out")

    given = []
    with answered_by(kind, hang) as client, pytest.raises(ServiceError):
        client.wait_until_ready(0.2)
    assert max(given) <= 0.2


def test_changes_of_versions(client, seen):
    client.answer(lambda request: httpx.Response(200, json={"version": "2", "state": "serving", "more": 1}))
    assert client.load_version("m\udcff", 2).state == "serving"
    assert client.unload_version("m", "2").reason is None
    client.answer(lambda request: httpx.Response(200, json={"versions": {"1": 9, "2": 1}, "previous": {"1": 1}}))
    assert client.set_alias("m", "stable", {"1": 9, "2": 1}).versions == {"1": 9, "2": 1}
    assert client.set_alias("m", "stable", "1").previous == {"1": 1}
    assert client.set_alias("m", "stable", 1).previous == {"1": 1}
    assert client.set_alias("m", "stable", 1, mirror={"2": 10}).mirror == {}
    assert client.roll_back_alias("m", "stable").versions == {"1": 9, "2": 1}
    client.answer(lambda request: httpx.Response(204))
    client.delete_alias("m", "a/b")
    assert [(request.method, request.url.raw_path.decode(), request.content) for request in seen] == [
        ("POST", "/models/m%FF/versions/2/load", b""),
        ("POST", "/models/m/versions/2/unload", b""),
        ("PUT", "/models/m/aliases/stable", b'{"versions":{"1":9,"2":1}}'),
        ("PUT", "/models/m/aliases/stable", b'{"version":"1"}'),
        ("PUT", "/models/m/aliases/stable", b'{"version":"1"}'),
        ("PUT", "/models/m/aliases/stable", b'{"version":"1","mirror":{"2":10}}'),
        ("POST", "/models/m/aliases/stable/rollback", b""),
        ("DELETE", "/models/m/aliases/a%2Fb", b""),
    ]


@pytest.mark.parametrize(
    "body",
    [b"<html>log in</html>", b"{}", b"[1]", b"null", b'{"state": 5}', b'{"versions": {}}', b'{"versions": {"1": 0}}'],
)
@pytest.mark.parametrize("status", [200, 502])
def test_answers_of_strangers(body, status, kind):
    def answer(request):
        return httpx.Response(status, content=body)

    with answered_by(kind, answer, url="http://user:secret@server", retries=0) as client:
        for ask in (
            lambda: client.load_version("m", "1"),
            lambda: client.unload_version("m", "1"),
            lambda: client.aliases("m"),
            lambda: client.set_alias("m", "a", {"1": 1}),
            lambda: client.roll_back_alias("m", "a"),
            lambda: client.models(),
            lambda: client.model("m"),
            lambda: client.live_routing(),
            lambda: client.recent_routing("r"),
            lambda: client.ablation(b"\1"),
        ):
            with pytest.raises(RemoteFailed) as failed:
                ask()
            assert (
                str(failed.value)
                == f"The server at http://server answered {status}, but this is no answer of condconv-serve."
            )


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://server:9", "http://server:9/predict"),
        ("https://server/", "https://server/predict"),
        ("http://server/classify", "http://server/classify/predict"),
        ("http://server/team/classify/", "http://server/team/classify/predict"),
        ("http://[::1]:9", "http://[::1]:9/predict"),
    ],
)
def test_addresses(url, asked, kind):
    seen = []

    def answer(request):
        seen.append(str(request.url))
        return for_each_image(request)

    with answered_by(kind, answer, url=url) as client:
        client.predict(b"\1")
    assert seen == [asked]


@pytest.mark.parametrize(
    "url",
    [
        "server:8000",
        "ftp://server",
        "http://",
        "http://s:99999x",
        "http://s/?a=1",
        f"http://{'s' * 64}.example.org",
        "http://.",
        "http://xn--a",
    ],
)
def test_what_is_no_address(url, kind):
    with pytest.raises(ConfigurationError, match="is not the address of a server"), opened(kind, url):
        pass


def test_the_environment_says_where_and_who(kind, monkeypatch):
    monkeypatch.setenv("CONDCONV_URL", "http://there:1")
    monkeypatch.setenv("CONDCONV_API_KEY", " key\n")
    seen = []

    def answer(request):
        seen.append((str(request.url), request.headers.get("X-API-Key")))
        return for_each_image(request)

    with answered_by(kind, answer, url=None) as client:
        client.predict(b"\1")
        assert client.url == "http://there:1"
    with answered_by(kind, answer, url="http://here", api_key="") as client:
        client.predict(b"\1")
    assert seen == [("http://there:1/predict", "key"), ("http://here/predict", None)]


@pytest.mark.parametrize("key", ["a\nb", "\xe9", "\x1b"])
def test_impossible_keys_are_not_repeated(key, kind):
    says = r"^The API key holds characters that no key has\.$"
    with pytest.raises(ConfigurationError, match=says), opened(kind, api_key=key):
        pass


def test_passwords_are_not_shown(kind):
    def refuse(request):
        assert request.headers["authorization"].startswith("Basic ")
        raise httpx.ConnectError("refused")

    with answered_by(kind, refuse, url="http://user:secret@server", retries=0) as client:
        with pytest.raises(RemoteFailed) as raised:
            client.models()
        assert str(raised.value) == "The server at http://server can't be reached: refused."
        assert "secret" not in client.url
    for wrong in (
        "http://user:secret@server:99999x",
        "user:secret@server",
        "user:secret@server/x",
        "http://u:secret@s?a",
    ):
        with pytest.raises(ConfigurationError, match="is not the address of a server") as refused, opened(kind, wrong):
            pass
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout": -1}, InvalidParameter, "timeout"),
        ({"retries": -1}, InvalidParameter, "retries is a whole number from 0 on"),
        ({"retries": True}, InvalidParameter, "retries is a whole number from 0 on"),
        ({"concurrency": 0}, InvalidParameter, "concurrency is a whole number from 1 on"),
        ({"api_key": 5}, ConfigurationError, "An API key is text, not int"),
        ({"api_key": b"key"}, ConfigurationError, "An API key is text, not bytes"),
        ({"verify": 5}, ConfigurationError, "verify is True, False, a file or directory"),
        ({"verify": None}, ConfigurationError, "verify is True, False, a file or directory"),
        ({"proxy": 5}, ConfigurationError, "proxy"),
        ({"verify": "/nowhere.pem"}, ConfigurationError, "holds no certificates"),
        ({"proxy": "nonsense"}, ConfigurationError, "proxy"),
    ],
)
def test_impossible_clients(options, error, says, kind):
    with pytest.raises(error, match=says), opened(kind, "https://server", **options):
        pass


def test_certificates_may_be_given(kind, tmp_path):
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for verify in (False, True, tmp_path / "ca.pem", str(tmp_path / "ca.pem"), tmp_path, ssl.create_default_context()):
        with opened(kind, "https://server", verify=verify, proxy="http://proxy:3128"):
            pass


def test_a_closed_client(client):
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.predict(b"\1")
