"""Each front over the same plane, asked in its own words and heard in one."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from condconv_serve.domain import Row, ServedModel, Tensors, rows_of
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import create_app
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.cache import RowCache
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.inference.sharing import RowSharing
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.exposition import RegistryExposition
from condconv_serve.telemetry.metrics import Metrics
from condconv_serve.telemetry.tally import Tallies
from tests.contract import open_inference_grpc, tensorflow_serving_grpc
from tests.contract.fakes import FakeModels, NoVersions, served_model, shade_detector
from tests.contract.grpc_calls import call, grpc_served
from tests.contract.grpc_front import PATH, REQUEST, RESPONSE, rows_service
from tests.contract.heard import Heard
from tests.contract.npz_front import npz_front
from tests.contract.open_inference import ask_open_inference, open_inference
from tests.contract.tensorflow_serving import ask_tensorflow_serving, tensorflow_serving
from tests.pictures import encode

KEYS = KeyRing(
    [
        ApiKey(name="ann", scopes=("predict",), sha256=sha256(b"ann").hexdigest()),
        ApiKey(name="bob", scopes=("predict",), sha256=sha256(b"bob").hexdigest()),
        ApiKey(name="suspended", scopes=(), sha256=sha256(b"suspended").hexdigest()),
        ApiKey(name="slow", scopes=("predict",), sha256=sha256(b"slow").hexdigest(), requests_per_minute=2),
    ]
)


@dataclass
class House:
    """What stands below the fronts. Batches wait while `free` is cleared; `batches` are their rows' shades."""

    max_queue_rows: int = 16
    cache_bytes: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    free: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[int]] = field(default_factory=list)
    readiness: Readiness = field(default_factory=lambda: Readiness(lambda: None))
    models: FakeModels = field(default_factory=lambda: FakeModels(served_model()))
    tallies: Tallies = field(default_factory=Tallies)

    def __post_init__(self) -> None:
        self.batcher = CountingBatcher(
            self.run, streams=1, max_batch_size=4, max_queue_rows=self.max_queue_rows, metrics=self.metrics
        )
        self.cache = RowCache(self.cache_bytes, metrics=self.metrics)
        self.plane = InferencePlane(
            self.models,
            self.batcher,
            metrics=self.metrics,
            tallies=self.tallies,
            sharing=RowSharing(self.cache) if self.cache_bytes else None,
        )

    async def run(self, model: ServedModel, rows: Sequence[Row]) -> Sequence[Tensors]:
        await self.free.wait()
        self.batches.append([int(row[0, 0, 0]) for row in rows])
        return rows_of(model.engine(np.stack(rows), 0))

    def read(self, name: str, **labels: str) -> float | None:
        """A sample's value; labels without a value mean the same as none."""
        for family in self.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == name and {k: v for k, v in sample.labels.items() if v} == labels:
                    return sample.value
        return None


class CountingBatcher(Batcher[ServedModel, Row, Tensors]):
    """`submitted` counts the rows that wait or have waited in the queue, decoded and all."""

    submitted = 0

    def put(self, *arguments: Any, **options: Any) -> Any:
        self.submitted += 1
        return super().put(*arguments, **options)


Ask = Callable[..., Coroutine[Any, Any, Heard]]
"""Asks about shades. Takes a key, `headers` (or metadata), and parameters of the protocol."""


@dataclass(frozen=True)
class Front:
    """A front: the route that metrics name, how to open it and get what asks it, and which models it serves.

    `says_timeout` tells whether its requests say how long the caller waits, rather than the call itself. `protocol` is
    what metrics call it, if not as `FRONTS` does.
    """

    route: str
    open: Callable[[AppContext], AbstractAsyncContextManager[Ask]]
    says_timeout: bool = True
    protocol: str = ""
    models: Callable[[], FakeModels] = lambda: FakeModels(served_model())


def over_http(make: Callable[[AppContext], ASGIApp], ask_it: Ask) -> Callable[[AppContext], Any]:
    """How to open an application, which `ask_it` asks with a client."""

    @contextlib.asynccontextmanager
    async def open_it(context: AppContext) -> AsyncIterator[Ask]:
        transport = httpx.ASGITransport(make(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(*shades: int, headers: Any, **params: Any) -> Heard:
                return await ask_it(client, shades, headers=headers, params=params)

            yield ask

    return open_it


def native(context: AppContext) -> ASGIApp:
    return create_app(context, lifespan=None)  # type: ignore[arg-type]


def npz(context: AppContext) -> ASGIApp:
    return npz_front(context.gatekeeper, context.images.plane, context.metrics, max_body_bytes=10**6)


async def ask_native(client: httpx.AsyncClient, shades: Sequence[int], **asked: Any) -> Heard:
    return await ask_with_pictures(client, "/predict", "classes", shades, **asked)


async def ask_detect(client: httpx.AsyncClient, shades: Sequence[int], **asked: Any) -> Heard:
    return await ask_with_pictures(client, "/detect", "detections", shades, **asked)


async def ask_with_pictures(
    client: httpx.AsyncClient, path: str, found: str, shades: Sequence[int], **asked: Any
) -> Heard:
    pictures = [encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades]
    files = [("image", (f"{number}.png", picture)) for number, picture in enumerate(pictures)]
    response = await client.post(path, files=files, **asked)
    body = response.json()
    predictions = body.get("predictions", [])
    classes = [entry[found][0]["index"] for entry in predictions if found in entry]
    failed = [entry["error"]["slug"] for entry in predictions if "error" in entry]
    slug = body.get("slug") or next(iter(failed), None)
    headers = response.headers
    return Heard(response.status_code, slug, classes, headers["x-request-id"], headers.get("cache-status"))


async def ask_npz(client: httpx.AsyncClient, shades: Sequence[int], **asked: Any) -> Heard:
    rows = np.broadcast_to(np.array(shades, np.uint8)[:, None, None, None], (len(shades), 32, 32, 3))
    np.savez(packed := io.BytesIO(), rows=rows)
    response = await client.post("/npz", content=packed.getvalue(), **asked)
    request_id = response.headers["x-request-id"]
    if response.status_code != 200:
        return Heard(response.status_code, response.text.partition(":")[0], [], request_id)
    with np.load(io.BytesIO(response.content)) as tensors:
        return Heard(200, None, tensors["logits"].argmax(axis=1).tolist(), request_id)


@contextlib.asynccontextmanager
async def grpc_rows(context: AppContext) -> AsyncIterator[Ask]:
    async with grpc_served([rows_service(context)], context) as served:

        async def ask(*shades: int, headers: Any, **params: Any) -> Heard:
            rows = np.broadcast_to(np.array(shades, np.uint8)[:, None, None, None], (len(shades), 32, 32, 3))
            request = REQUEST(model_name=params.get("model", ""), raw_input_contents=[rows.tobytes()])
            request.inputs.add(shape=rows.shape)
            if "timeout_ms" in params:
                request.parameters["timeout"].int64_param = params["timeout_ms"]
            if "priority" in params:
                request.parameters["priority"].string_param = params["priority"]
            heard, data = await call(served.channel, PATH, request, headers)
            if data is None:
                return heard
            logits = np.frombuffer(RESPONSE.FromString(data).raw_output_contents[0], np.float32)
            return replace(heard, classes=logits.reshape(len(shades), -1).argmax(axis=1).tolist())

        yield ask


FRONTS = {
    "native": Front("/predict", over_http(native, ask_native)),
    "native-detect": Front(
        "/detect", over_http(native, ask_detect), protocol="native", models=lambda: FakeModels(shade_detector())
    ),
    "npz": Front("/npz", over_http(npz, ask_npz)),
    "grpc": Front(PATH, grpc_rows),
    "oip-grpc": Front(open_inference_grpc.PATH, open_inference_grpc.open_inference_grpc),
    "oip": Front("/v2/models/{model}/infer", over_http(open_inference, ask_open_inference)),
    "tfserving": Front("/v1/models/{name}:predict", over_http(tensorflow_serving, ask_tensorflow_serving)),
    "tfserving-grpc": Front(
        tensorflow_serving_grpc.PATH, tensorflow_serving_grpc.tensorflow_serving_grpc, says_timeout=False
    ),
}


@contextlib.asynccontextmanager
async def opened(
    name: str, *, ready: bool = True, max_queue_rows: int = 16, cache_bytes: int = 0
) -> AsyncIterator[tuple[House, Ask]]:
    """A front over a running plane, with keys and one stream."""
    limits: Any = {"max_queue_rows": max_queue_rows, "cache_bytes": cache_bytes}
    async with (
        house_with_keys(ready=ready, models=FRONTS[name].models(), **limits) as (house, context),
        FRONTS[name].open(context) as ask_it,
    ):

        async def ask(*shades: int, key: str | None = "ann", headers: Any = None, **params: Any) -> Heard:
            headers = {**(headers or {}), **({} if key is None else {"X-API-Key": key})}
            return await ask_it(*shades, headers=headers, **params)

        yield house, ask


@contextlib.asynccontextmanager
async def house_with_keys(
    *,
    ready: bool = True,
    max_queue_rows: int = 16,
    cache_bytes: int = 0,
    keys: KeyRing | None = KEYS,
    models: FakeModels | None = None,
    **parts: Any,
) -> AsyncIterator[tuple[House, AppContext]]:
    """A running plane with one stream, and what fronts work with; `parts` are more fields of the context."""
    models = models or FakeModels(served_model())
    house = House(max_queue_rows=max_queue_rows, cache_bytes=cache_bytes, models=models)
    house.free.set()
    if ready:
        house.readiness.loaded()
    with ThreadPoolExecutor(2) as decoders:
        context = AppContext(
            images=ImagePipeline(house.plane, ImageDecoder(decoders, max_pixels=10**6), digests=cache_bytes > 0),
            models=house.models,
            metrics=house.metrics,
            exposition=RegistryExposition(house.metrics.registry),
            limits=BodyLimits(max_body_bytes=10**6, max_images=20),
            gatekeeper=Gatekeeper(house.readiness, keys=keys, request_timeout=60.0),
            readiness=house.readiness,
            versions=NoVersions(),
            tallies=house.tallies,
            **parts,
        )
        async with house.batcher, asyncio.timeout(120):
            try:
                yield house, context
            finally:
                house.free.set()
