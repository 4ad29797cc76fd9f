"""The real application around parts that do what a test tells them to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service.api import Access, BodyLimits, Parts, create_app
from service.classifier import Classification, Classifier
from service.domain import ServedModel
from service.errors import ModelNotFound
from service.metrics import Metrics
from service.readiness import Readiness


class FakeClassifier:
    """Calls `answer` instead of classifying."""

    def __init__(self, answer: Callable[[], Awaitable[Classification]]) -> None:
        self._answer = answer

    def check_capacity(self, model: str | None, version: str | None, **_: Any) -> None:
        pass

    async def classify(self, images: Any, **_: Any) -> Classification:
        return await self._answer()


class NoModels:
    default_model: str | None = None

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        return {}

    def get(self, name: str | None, version: str | None) -> ServedModel:
        raise ModelNotFound(f"Model {name!r} is not served; served are: none.")


def application(
    answer: Callable[[], Awaitable[Classification]],
    *,
    readiness: Readiness | None = None,
    access: Access | None = None,
) -> tuple[FastAPI, Metrics]:
    """An application whose classifier answers with `answer`, and its metrics."""
    metrics = Metrics(CollectorRegistry())
    if readiness is None:
        readiness = Readiness(lambda: None)
        readiness.loaded()
    parts = Parts(
        classifier=cast(Classifier, FakeClassifier(answer)),
        models=NoModels(),
        metrics=metrics,
        limits=BodyLimits(max_body_bytes=1000, max_images=2),
        request_timeout=30.0,
        readiness=readiness,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app(parts, lifespan=lifespan, access=access), metrics


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
