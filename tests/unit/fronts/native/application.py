"""The real application around parts that do what a test tells them to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from condconv_serve.domain import ServedModel
from condconv_serve.errors import ModelNotFound
from condconv_serve.fronts.native import Access, BodyLimits, Parts, create_app
from condconv_serve.serving.readiness import Readiness
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from condconv_serve.tasks.classification import Classification, Classifier
from condconv_serve.telemetry.metrics import Metrics


class FakeClassifier:
    """Calls `answer` instead of classifying."""

    def __init__(self, answer: Callable[[], Awaitable[Classification]]) -> None:
        self._answer = answer

    def check_capacity(self, model: str | None, version: str | None, **_: Any) -> None:
        pass

    async def classify(self, images: Any, **_: Any) -> Classification:
        return await self._answer()


class NoVersions:
    def status(self) -> Mapping[str, list[VersionStatus]]:
        return {}

    async def load(self, name: str, version: str) -> VersionStatus:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    unload = load

    async def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> Alias:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    async def roll_back(self, name: str, alias: str) -> Alias:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")

    async def delete_alias(self, name: str, alias: str) -> None:
        raise ModelNotFound(f"There is no model {name!r} in the store; there are: none.")


class NoModels:
    default_model: str | None = None

    def models(self) -> Mapping[str, Mapping[str, ServedModel]]:
        return {}

    def aliases(self, name: str) -> Mapping[str, Alias]:
        return {}

    def lease(
        self, name: str | None, version: str | None, *, key: str = ""
    ) -> contextlib.AbstractContextManager[ServedModel]:
        return contextlib.nullcontext(self.get(name, version, key=key))

    def get(self, name: str | None, version: str | None, *, key: str = "") -> ServedModel:
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
        versions=NoVersions(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app(parts, lifespan=lifespan, access=access), metrics


def connect(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
