"""One process and several give the same answers: status, names of headers, and every byte but ids and times."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from condconv_serve.fronts.keys import new_key
from condconv_serve.fronts.oip.datatypes import joined
from condconv_serve.fronts.oip.grpc import NAME
from condconv_serve.fronts.oip.grpc_messages import REQUEST
from condconv_serve.fronts.tfserving.grpc import MESSAGES, PREDICTION_SERVICE
from condconv_serve.fronts.tfserving.tensors import DT_STRING
from condconv_serve.store.aliases import set_alias
from condconv_serve.store.default import set_default
from tests import pictures
from tests.e2e.server import MODEL, PATIENCE, Server, new_client, wait_for
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.unit.fronts.native.routing_service import patched

pytestmark = pytest.mark.workers

DETECTOR = "colours"
ROOM = 3
PHOTO = pictures.jpeg(pictures.photo("coffee", (60, 40)))
OTHER = pictures.jpeg(pictures.photo("cat", (60, 40)))
BLOCKS = pictures.encode(patched(("red", (40, 40, 50, 60)), ("blue", (0, 0, 10, 20)), size=(80, 160)), "PNG")
BASE64 = base64.b64encode(PHOTO).decode()
ID = "asked-of-both"
TIMES = re.compile(
    rb'("timings_ms":\{)[^}]*|("(?:retry_after|ns|last_inference|seconds|at)":)[0-9.e-]+|\d{4}-\d\d-\d\d(?:T[\d:.]+Z?)?|\b[a-z][0-9a-f]{10}\b'
)
"""And the random names of parts of an SVG."""
SUMS = re.compile(rb"\d+\.\d{9,}(?:e-\d+)?")
"""Numbers whose last digits depend on how many answers were added up at once."""
NOT_COMPARED = {"date", "traceresponse", "retry-after"}
"""Headers whose values are of a moment; their names are compared."""

Asked = tuple[str, str, dict[str, Any]]


def post(path: str, content: bytes = PHOTO, **options: Any) -> Asked:
    return "POST", path, {"content": content, **options}


def form(path: str, *images: bytes, **fields: str) -> Asked:
    return "POST", path, {"files": [("image", (f"{n}.jpg", data)) for n, data in enumerate(images)], "data": fields}


def in_json(path: str, **body: Any) -> Asked:
    return "POST", path, {"json": body}


def get(path: str) -> Asked:
    return "GET", path, {}


def tensor(**parameters: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64], **parameters}


RAW = len(PHOTO).to_bytes(4, "little") + PHOTO
HEAD = json.dumps(
    {
        "inputs": [
            {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(RAW)}},
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
).encode()
INFER, PREDICT = f"/v2/models/{MODEL}/infer", f"/v1/models/{MODEL}:predict"

ASKED: tuple[Asked, ...] = (
    # Images, in every form and with every option of the answer.
    post("/predict"),
    post("/predict?top_k=16&threshold=0.01&routing=true"),
    post(f"/predict?model={MODEL}&version=1&priority=high&timeout_ms=20000"),
    post(f"/predict?model={MODEL}&version=stable"),
    form("/predict", PHOTO, OTHER, b"no image", top_k="2", routing="true"),
    in_json("/predict", images=[{"data": BASE64, "id": "a", "filename": "a.jpg"}, BASE64], top_k=1),
    post("/predict", headers={"Cache-Control": "no-cache"}),
    post("/features?logits=true"),
    *(post(f"/features?format={form}") for form in ("npz", "json")),
    post("/features", headers={"Accept": "application/octet-stream"}),
    post("/routing?top_k=2"),
    *(post(f"/routing?format={form}") for form in ("csv", "npz", "png", "svg")),
    form("/routing", PHOTO, b"", OTHER),
    post(f"/routing?model={DETECTOR}", BLOCKS),
    post("/routing/ablation?blocks=block_4"),
    post(f"/routing/ablation?model={DETECTOR}&blocks=block_1", BLOCKS),
    post(f"/detect?model={DETECTOR}", BLOCKS),
    post(f"/detect?model={DETECTOR}&score_threshold=0.1&iou_threshold=0.9&max_detections=3&routing=true", BLOCKS),
    form("/detect", BLOCKS, PHOTO, b"no image", model=DETECTOR),
    # What is remembered and counted.
    get(f"/routing/{ID}"),
    get(f"/routing?model={MODEL}"),
    get(f"/routing?model={DETECTOR}"),
    get(f"/routing/classes/1?model={MODEL}"),
    get(f"/routing/experts/block_4/0?model={MODEL}"),
    ("POST", "/routing/reset", {}),
    # The server and its models.
    *(get(path) for path in ("/livez", "/readyz", "/healthz", "/", "/docs", "/openapi.json")),
    get("/models"),
    get(f"/models/{MODEL}"),
    get(f"/models/{DETECTOR}"),
    get(f"/models/{MODEL}/aliases"),
    ("HEAD", "/readyz", {}),
    ("PUT", f"/models/{MODEL}/aliases/canary", {"json": {"versions": {"1": 90, "2": 10}}}),
    ("POST", f"/models/{MODEL}/aliases/canary/rollback", {}),
    ("DELETE", f"/models/{MODEL}/aliases/canary", {}),
    ("POST", f"/models/{MODEL}/versions/2/load", {}),
    ("POST", f"/models/{MODEL}/versions/1/unload", {}),
    # The Open Inference Protocol.
    *(get(path) for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}", "/v2/openapi.json")),
    get(f"/v2/models/{MODEL}/versions/1/ready"),
    get(f"/v2/models/{DETECTOR}/config"),
    ("POST", "/v2/repository/index", {}),
    in_json(INFER, id="mine", inputs=[tensor()]),
    in_json(INFER, inputs=[tensor()], outputs=[{"name": "probabilities", "parameters": {"classification": 3}}]),
    post(INFER, HEAD + RAW, headers={"Inference-Header-Content-Length": str(len(HEAD))}),
    in_json(f"/v2/models/{MODEL}/versions/7/infer", inputs=[tensor()]),
    in_json(INFER, inputs=[tensor(shape=[2])]),
    get(f"/v2/models/{MODEL}/stats"),
    # TensorFlow Serving's.
    get(f"/v1/models/{MODEL}"),
    get(f"/v1/models/{MODEL}/labels/stable/metadata"),
    get("/v1/openapi.json"),
    in_json(PREDICT, instances=[{"b64": BASE64}]),
    in_json(PREDICT, inputs={"image": [{"b64": BASE64}]}, signature_name="logits"),
    in_json(f"/v1/models/{MODEL}:classify", examples=[{"image": {"b64": BASE64}}]),
    in_json("/v1/models/plum:predict", instances=[{"b64": BASE64}]),
    in_json(PREDICT, instances=["no image"]),
    # What is refused.
    post("/predict", b""),
    post("/predict", b"{", headers={"Content-Type": "application/json"}),
    post("/predict", headers={"X-API-Key": "nobody's"}),
    get("/nowhere"),
    get("/models/plum"),
    get("/routing/unknown"),
    post("/predict?version=7"),
    get("/predict"),
    post("/predict", bytes(300_001)),
    form("/predict", *[PHOTO] * (ROOM + 1)),
    post("/predict", b"no image"),
    post("/predict", headers={"Content-Type": "text/plain"}),
    post("/predict", PHOTO[:300]),
    post("/predict?top_k=0"),
    post("/predict?topk=1"),
    post("/detect"),
    ("GET", "/livez", {"headers": {"X-Long": "x" * 70_000}}),
    ("POST", "/v2/systemsharedmemory/region/r/register", {"json": {}}),
)


def name_of(asked: Asked) -> str:
    method, path, options = asked
    return f"{method} {path} {' '.join(options)}"


@pytest.fixture(scope="module")
def keys() -> tuple[dict[str, str], str]:
    """Secrets, and the setting: one key may do everything, the others may ask once a minute."""
    made = {
        "all": new_key("all", scopes=("admin",)),
        "once": new_key("once", requests_per_minute=1),
        "once-grpc": new_key("once-grpc", requests_per_minute=1),
    }
    secrets = {name: secret for name, (secret, _) in made.items()}
    return secrets, json.dumps({"keys": [key.model_dump(exclude_none=True) for _, key in made.values()]})


@pytest.fixture(scope="module")
def servers(keys: tuple[dict[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ...]]:
    """One process, and several; each with a store of its own, which requests change."""
    secrets, setting = keys
    stores = [tmp_path_factory.mktemp("store") for _ in range(2)]
    for store in stores:
        fill(store)
    settings: dict[str, Any] = {
        "api_keys": setting,
        "grpc_port": 0,
        "max_batch_size": 1,  # a row's last digits depend on how many others are in its batch
        "streams": 1,
        "max_queue_rows": ROOM,
        "max_body_bytes": 300_000,
        "cache_bytes": 2_000_000,
        "request_timeout": PATIENCE,
        "stall_timeout": PATIENCE,
    }
    with (
        Server(workers=1, until_ready=False, model_store=stores[0], **settings) as alone,
        Server(workers=2, until_ready=False, model_store=stores[1], **settings) as several,
    ):
        for server in (alone, several):
            server.client.headers.update({"X-API-Key": secrets["all"], "X-Request-Id": ID})
            wait_for(lambda server=server: len(server.client.get("/healthz").json().get("models", [])) == 3)  # type: ignore[misc]
        yield alone, several


def fill(store: Path) -> None:
    for version in (1, 2):
        write_fake(store, MODEL, version)
    write_colour_detector(store, name=DETECTOR)
    set_alias(store, MODEL, "stable", {"1": 1})
    set_default(store, MODEL)


def told(response: httpx.Response) -> tuple[int, list[str], dict[str, str], bytes]:
    """What must be the same."""
    headers = response.headers
    values = {name: value for name, value in headers.items() if name not in NOT_COMPARED}
    body = response.content
    # These say when they were made.
    if body.startswith(b"PK"):
        with np.load(io.BytesIO(body)) as arrays:
            body = b"".join(name.encode() + arrays[name].tobytes() for name in arrays if name != "made_by")
    elif values.get("content-type") == "image/png":
        body = Image.open(io.BytesIO(body)).tobytes()
    elif "json" in values.get("content-type", "") or "xml" in values.get("content-type", ""):
        body = SUMS.sub(lambda found: b"%.8g" % float(found[0]), TIMES.sub(rb"\1\2", body))
    if body != response.content:
        del values["content-length"]
    return response.status_code, [name.decode().lower() for name, _ in headers.raw], values, body


def same(servers: tuple[Server, ...], ask: Callable[[Server], httpx.Response]) -> httpx.Response:
    """Ask both; returns what one of them has answered, which is what the other one has."""
    alone, several = [ask(server) for server in servers]
    assert told(several) == told(alone)
    return several


@pytest.mark.parametrize("asked", ASKED, ids=name_of)
def test_the_same_answer(servers: tuple[Server, ...], asked: Asked) -> None:
    method, path, options = asked
    same(servers, lambda server: server.client.request(method, path, **options))


def test_there_is_no_room(servers: tuple[Server, ...]) -> None:
    """The queue is full: 429."""
    alone, several = servers
    with (
        new_client(alone.url, connections=2 * (ROOM + 1)) as waiting,
        ThreadPoolExecutor(2 * (ROOM + 1)) as pool,
        alone.holding(),
        several.holding(),
    ):
        waiting.headers = alone.client.headers
        pending = []
        numbers = iter(range(ROOM + 1))
        for figure, count in (("condconv_rows_in_flight", 1), ("condconv_queue_rows", ROOM)):
            for number in itertools.islice(numbers, count):
                body = PHOTO + bytes([number])
                pending += [pool.submit(waiting.post, f"{server.url}/predict", content=body) for server in servers]
            for server in servers:
                wait_for(lambda server=server, figure=figure, count=count: server.metrics()[figure] == count)  # type: ignore[misc]
        full = same(servers, lambda server: server.client.post("/predict", content=PHOTO + b"new"))
        assert (full.status_code, full.json()["slug"]) == (429, "queue_full")
        fresh = {"inputs": [tensor(data=[base64.b64encode(PHOTO + b"oip").decode()])]}
        assert same(servers, lambda server: server.client.post(INFER, json=fresh)).status_code == 429
    assert {answer.result().status_code for answer in pending} == {200}


def test_who_asks_too_often(servers: tuple[Server, ...], keys: tuple[dict[str, str], str]) -> None:
    headers = {"X-API-Key": keys[0]["once"]}
    answers = [
        same(servers, lambda server: server.client.post("/predict", content=PHOTO, headers=headers)).status_code
        for _ in range(2)
    ]
    assert answers == [200, 429]


def test_nobody_answers_in_time(servers: tuple[Server, ...]) -> None:
    """The time is long enough to be over only once the image is computed, since the answer says when it was."""

    def ask(server: Server) -> httpx.Response:
        return server.client.post("/predict?timeout_ms=6000", content=PHOTO + b"late")

    alone, several = servers
    with alone.holding(), several.holding(), ThreadPoolExecutor(2) as pool:
        late = [*pool.map(ask, servers)]
    assert told(late[1]) == told(late[0])
    assert (late[0].status_code, late[0].json()["slug"]) == (504, "deadline_exceeded")


def test_the_same_metrics(servers: tuple[Server, ...]) -> None:
    """By name and labels, but for those of the processes themselves, and of waiting for their start."""
    own = ("process_", "python_", "condconv_worker_")
    alone, several = [
        {name for name in server.metrics() if not name.startswith(own) and 'route="/healthz"' not in name}
        for server in servers
    ]
    assert several == alone


def infer(**options: Any) -> bytes:
    request = REQUEST(
        model_name=options.get("model", MODEL), raw_input_contents=[joined([options.get("photo", PHOTO)])]
    )
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.outputs.add(name="probabilities")
    return bytes(request.SerializeToString())


def predict() -> bytes:
    request = MESSAGES.message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = MODEL
    request.inputs["image"].dtype = DT_STRING
    request.inputs["image"].tensor_shape.dim.add().size = 1
    request.inputs["image"].string_val.append(PHOTO)
    return bytes(request.SerializeToString())


PREDICTED = MESSAGES.message("tensorflow.serving.PredictResponse")
CALLS = {
    "infer": (f"/{NAME}/ModelInfer", infer(), "all"),
    "ready": (f"/{NAME}/ServerReady", b"", "all"),
    "metadata": (f"/{NAME}/ServerMetadata", b"", "all"),
    "predict": (f"/{PREDICTION_SERVICE}/Predict", predict(), "all"),
    "health": ("/grpc.health.v1.Health/Check", b"", "all"),
    "unknown model": (f"/{NAME}/ModelInfer", infer(model="plum"), "all"),
    "no image": (f"/{NAME}/ModelInfer", infer(photo=b"no image"), "all"),
    "damaged image": (f"/{NAME}/ModelInfer", infer(photo=PHOTO[:300]), "all"),
    "no message": (f"/{NAME}/ModelInfer", b"\xff", "all"),
    "no method": ("/no.Service/Call", b"", "all"),
    "no key": (f"/{NAME}/ModelInfer", infer(), ""),
    "once": (f"/{NAME}/ModelInfer", infer(), "once-grpc"),
    "once more": (f"/{NAME}/ModelInfer", infer(), "once-grpc"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_answer_over_grpc(servers: tuple[Server, ...], keys: tuple[dict[str, str], str], name: str) -> None:
    path, message, key = CALLS[name]
    metadata = [("x-request-id", ID)] + ([("x-api-key", keys[0][key])] if key else [])

    def ask(server: Server) -> tuple[Any, ...]:
        with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(path)
            try:
                data, ended = call.with_call(message, metadata=metadata, timeout=60)
            except grpc.RpcError as error:
                data, ended = b"", error
            names = sorted(name for name, _ in (*ended.initial_metadata(), *ended.trailing_metadata()))
            if name == "predict" and data:  # a map's order is of the process
                data = PREDICTED.FromString(data).SerializeToString(deterministic=True)
            return ended.code(), re.sub(r"\d+", "", ended.details() or ""), names, bytes(data)

    alone, several = [ask(server) for server in servers]
    assert several == alone
