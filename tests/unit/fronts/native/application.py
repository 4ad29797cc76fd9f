"""The real application around what does as a test tells it to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from condconv_serve.domain import Classification
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import KeyRing
from condconv_serve.fronts.native import create_app
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.serving.readiness import Readiness
from condconv_serve.telemetry.exposition import RegistryExposition
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import ColourDetector, FakeModels, NoVersions, detector_info, served_model


class FakePipeline:
    """Calls `answer` instead of computing anything; it is its own plane."""

    def __init__(self, answer: Callable[[], Awaitable[Classification]]) -> None:
        self._answer = answer
        self.plane = self

    async def check(self, model: str | None, version: str | None, **_: Any) -> None:
        pass

    async def run(self, images: Any, task: Any, **_: Any) -> Classification:
        return await self._answer()


def application(
    answer: Callable[[], Awaitable[Classification]],
    *,
    readiness: Readiness | None = None,
    keys: KeyRing | None = None,
    open_admin: bool = True,
    **options: Any,
) -> tuple[FastAPI, Metrics]:
    """An application whose classifier answers with `answer`, and its metrics; `options` are those of `create_app`."""
    metrics = Metrics(CollectorRegistry())
    if readiness is None:
        readiness = Readiness(lambda: None)
        readiness.loaded()
    context = AppContext(
        images=cast(ImagePipeline, FakePipeline(answer)),
        models=FakeModels(served_model(), served_model(detector_info("finder"), ColourDetector())),
        metrics=metrics,
        exposition=RegistryExposition(metrics.registry),
        limits=BodyLimits(max_body_bytes=1000, max_images=2),
        gatekeeper=Gatekeeper(readiness, keys=keys, open_admin=open_admin),
        readiness=readiness,
        versions=NoVersions(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app(context, lifespan=lifespan, **options), metrics


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
