"""Each front over the same plane, asked in its own words and heard in one."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FakeModels, NoVersions, served_model
from tests.contract.npz_front import npz_front
from tests.pictures import encode

KEYS = KeyRing(
    [
        ApiKey(name="ann", scopes=("predict",), sha256=sha256(b"ann").hexdigest()),
        ApiKey(name="suspended", scopes=(), sha256=sha256(b"suspended").hexdigest()),
        ApiKey(name="slow", scopes=("predict",), sha256=sha256(b"slow").hexdigest(), requests_per_minute=2),
    ]
)


@dataclass
class House:
    """What stands below the fronts. Batches wait while `free` is cleared; `batches` are their rows' shades."""

    max_queue_rows: int = 16
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))
    free: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[int]] = field(default_factory=list)
    readiness: Readiness = field(default_factory=lambda: Readiness(lambda: None))
    models: FakeModels = field(default_factory=lambda: FakeModels(served_model()))

    def __post_init__(self) -> None:
        self.batcher = CountingBatcher(
            self.run, streams=1, max_batch_size=4, max_queue_rows=self.max_queue_rows, metrics=self.metrics
        )
        self.plane = InferencePlane(self.models, self.batcher, metrics=self.metrics)

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

    async def submit(self, *arguments: Any, **options: Any) -> Any:
        self.submitted += 1
        return await super().submit(*arguments, **options)


@dataclass(frozen=True)
class Heard:
    """An answer in one shape: the status code, an error's slug, or else the classes of the images."""

    status: int
    slug: str | None
    classes: list[int]
    request_id: str


Ask = Callable[..., Coroutine[Any, Any, Heard]]


@dataclass(frozen=True)
class Front:
    """A front: makes its application, and asks it."""

    route: str
    make: Callable[[House, Gatekeeper, ImagePipeline], ASGIApp]
    ask: Ask


def native(house: House, gatekeeper: Gatekeeper, images: ImagePipeline) -> ASGIApp:
    context = AppContext(
        images=images,
        models=house.models,
        metrics=house.metrics,
        limits=BodyLimits(max_body_bytes=10**6, max_images=20),
        gatekeeper=gatekeeper,
        readiness=house.readiness,
        versions=NoVersions(),
    )
    return create_app(context, lifespan=None)  # type: ignore[arg-type]


def npz(house: House, gatekeeper: Gatekeeper, images: ImagePipeline) -> ASGIApp:
    return npz_front(gatekeeper, images.plane, house.metrics, max_body_bytes=10**6)


async def ask_native(client: httpx.AsyncClient, shades: Sequence[int], **asked: Any) -> Heard:
    pictures = [encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades]
    files = [("image", (f"{number}.png", picture)) for number, picture in enumerate(pictures)]
    response = await client.post("/predict", files=files, **asked)
    body = response.json()
    predictions = body.get("predictions", [])
    classes = [entry["classes"][0]["index"] for entry in predictions if "classes" in entry]
    failed = [entry["error"]["slug"] for entry in predictions if "error" in entry]
    slug = body.get("slug") or next(iter(failed), None)
    return Heard(response.status_code, slug, classes, response.headers["x-request-id"])


async def ask_npz(client: httpx.AsyncClient, shades: Sequence[int], **asked: Any) -> Heard:
    rows = np.broadcast_to(np.array(shades, np.uint8)[:, None, None, None], (len(shades), 32, 32, 3))
    np.savez(packed := io.BytesIO(), rows=rows)
    response = await client.post("/npz", content=packed.getvalue(), **asked)
    request_id = response.headers["x-request-id"]
    if response.status_code != 200:
        return Heard(response.status_code, response.text.partition(":")[0], [], request_id)
    with np.load(io.BytesIO(response.content)) as tensors:
        return Heard(200, None, tensors["logits"].argmax(axis=1).tolist(), request_id)


FRONTS = {
    "native": Front("/predict", native, ask_native),
    "npz": Front("/npz", npz, ask_npz),
}


@contextlib.asynccontextmanager
async def opened(name: str, *, ready: bool = True, max_queue_rows: int = 16) -> AsyncIterator[tuple[House, Ask]]:
    """A front over a running plane, with keys and one stream."""
    house = House(max_queue_rows=max_queue_rows)
    house.free.set()
    if ready:
        house.readiness.loaded()
    gatekeeper = Gatekeeper(house.readiness, keys=KEYS, request_timeout=5.0)
    with ThreadPoolExecutor(2) as decoders:
        images = ImagePipeline(house.plane, ImageDecoder(decoders, max_pixels=10**6))
        app = FRONTS[name].make(house, gatekeeper, images)
        async with house.batcher, asyncio.timeout(20):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

                async def ask(*shades: int, key: str | None = "ann", headers: Any = None, **params: Any) -> Heard:
                    headers = {**(headers or {}), **({} if key is None else {"X-API-Key": key})}
                    return await FRONTS[name].ask(client, shades, headers=headers, params=params)

                yield house, ask
