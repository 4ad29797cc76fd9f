"""The real application, classifier and statistics around an engine of our own, for the routes about routing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry

from condconv_serve.domain import (
    Label,
    ModelInfo,
    RoutingLayout,
    RoutingProfile,
    RowAnswer,
    ServedModel,
    rows_of,
)
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import create_app
from condconv_serve.imaging import ImageDecoder
from condconv_serve.inference.ablation_queue import AblationQueue
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.live import LiveRouting
from condconv_serve.routing.profile import profile_of
from condconv_serve.routing.recent import RecentRequests
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.exposition import RegistryExposition
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import (
    ColourAblation,
    ColourDetector,
    FakeModels,
    NoVersions,
    ShadeAblation,
    ShadeEngine,
    detector_info,
    even_layout,
    model_info,
    served_model,
)
from tests.pictures import encode

BLOCKS, EXPERTS, CLASSES, SIZE = ("block_1", "block_2"), 3, 8, 8
RANDOM = np.random.default_rng(0).random((256, len(BLOCKS), EXPERTS)).astype(np.float32)
ANN, BOB, ADMIN = ({"X-API-Key": name} for name in ("ann", "bob", "admin"))


UNEVEN = np.concatenate([RANDOM[:, :1], np.where(np.arange(EXPERTS) < 2, RANDOM[:, 1:], 0)], axis=1)
"""The second block has two experts only."""
EVEN_LAYOUT, UNEVEN_LAYOUT = even_layout(BLOCKS, EXPERTS), RoutingLayout(BLOCKS, (EXPERTS, 2))


def served(
    name: str,
    *,
    version: str = "1",
    profile: RoutingProfile | None = None,
    layout: RoutingLayout = EVEN_LAYOUT,
    weights: Any = RANDOM,
) -> ServedModel:
    labels = [Label(i, f"class {i}", f"n{i}") for i in range(CLASSES)]
    info = model_info(name, version, layout=layout, labels=labels, image_size=SIZE, profile=profile)
    return served_model(info, ShadeEngine(classes=CLASSES, layout=layout, weights=weights))


SHADES = np.arange(256)
featureless = served("featureless")
MODELS = FakeModels(
    served("m"),
    served("m", version="2"),
    served("profiled", profile=profile_of(RANDOM, SHADES % CLASSES, EVEN_LAYOUT)),
    served("static", layout=RoutingLayout(), weights=np.zeros((256, 0, 0))),
    served(
        "uneven",
        profile=profile_of(UNEVEN, SHADES % CLASSES, UNEVEN_LAYOUT),
        layout=UNEVEN_LAYOUT,
        weights=UNEVEN,
    ),
    replace(featureless, info=replace(featureless.info, outputs=featureless.info.outputs[:2])),
    served_model(detector_info("finder"), ColourDetector()),
    served_model(detector_info("static-finder", layout=RoutingLayout()), ColourDetector(layout=RoutingLayout())),
)


def ablation_of(name: str, version: str) -> ShadeAblation | ColourAblation:
    if name == "finder":
        return ColourAblation(ColourDetector())
    layout = MODELS.get(name, version).info.routing
    return ShadeAblation(classes=CLASSES, layout=layout, weights=UNEVEN if name == "uneven" else RANDOM)


@contextlib.asynccontextmanager
async def running(*, statistics: bool = True, drawer: Drawer | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """The application, and an administrator's client of it."""
    metrics = Metrics(CollectorRegistry())
    live = LiveRouting() if statistics else None
    if live is not None:
        metrics.routing.set_source(live.exported)

    def observe(model: ModelInfo, row: RowAnswer) -> None:
        if live is not None:
            live.observe(model, row)

    async def run(model: ServedModel, rows: Any) -> Any:
        return rows_of(model.engine(np.stack(rows), 0))

    readiness = Readiness(lambda: None)
    readiness.loaded()
    ring = KeyRing(
        [
            ApiKey(name=name, scopes=scopes, sha256=sha256(name.encode()).hexdigest())
            for name, scopes in (("ann", ("predict",)), ("bob", ("predict",)), ("admin", ("predict", "admin")))
        ]
    )
    batcher: Any = Batcher(run, streams=1, max_batch_size=4, max_queue_rows=64, metrics=metrics)
    ablations = AblationQueue(ablation_of, prepare_thread=lambda: None, release_memory=lambda: None)
    with ThreadPoolExecutor(2) as decoders, ablations as lane:
        plane = InferencePlane(MODELS, batcher, metrics=metrics, observe=observe)
        context = AppContext(
            images=ImagePipeline(
                plane,
                ImageDecoder(decoders, max_pixels=20_000),
                count_objects=metrics.count_objects,
            ),
            models=MODELS,
            metrics=metrics,
            exposition=RegistryExposition(metrics.registry),
            limits=BodyLimits(max_body_bytes=10**6, max_images=20),
            gatekeeper=Gatekeeper(readiness, keys=ring),
            readiness=readiness,
            versions=NoVersions(),
            routing=live,
            recent=RecentRequests(max_requests=3) if statistics else None,
            ablator=lane,
            drawer=drawer or Drawer(),
        )
        app = create_app(context, lifespan=None)  # type: ignore[arg-type]
        async with batcher:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN) as client:
                yield client


def image(shade: int) -> bytes:
    return encode(Image.new("RGB", (16, 16), (shade,) * 3), "PNG")


def patched(*patches: tuple[str, tuple[int, int, int, int]], size: tuple[int, int] = (64, 32)) -> Image.Image:
    """A grey photo with patches: colours, and their left, upper, right and lower edges in pixels.

    `finder` finds those on its grid of 8 x 8.
    """
    photo = Image.new("RGB", size, (90, 90, 90))
    for colour, edges in patches:
        photo.paste(colour, edges)
    return photo


def form(*shades: int | None) -> list[Any]:
    """Images of these shades, and a broken one for None."""
    return [("image", (f"shade {s}.png", b"broken" if s is None else image(s))) for s in shades]


async def send(client: httpx.AsyncClient, *shades: int, model: str = "m", **options: Any) -> None:
    for shade in shades:
        assert (await client.post(f"/predict?model={model}", content=image(shade), **options)).status_code == 200


def assert_problem(response: httpx.Response, status: int, slug: str, says: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["slug"] == slug
    assert says in response.json()["detail"]
