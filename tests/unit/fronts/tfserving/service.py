"""Both fronts around a plane whose network needs no TensorFlow."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
from PIL import Image

from condconv_serve.domain import Label, ModelInfo, RoutingLayout, ServedModel
from condconv_serve.errors import ModelUnavailable
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.tfserving import create_app
from condconv_serve.fronts.tfserving.grpc import model_service, prediction_service
from condconv_serve.imaging import ImageDecoder
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.serving.versions import VersionStatus
from condconv_serve.store.aliases import Alias
from condconv_serve.telemetry.exposition import RegistryExposition
from tests.contract.fakes import FakeModels, NoVersions, model_info, served_model
from tests.contract.fronts import House
from tests.contract.grpc_calls import grpc_served
from tests.pictures import encode

SIZE, CLASSES = 32, 6
MAX_IMAGES = 3
ALIASES = {"stable": Alias(versions={"1": 1}), "split": Alias(versions={"1": 1, "2": 3})}
STATES = (
    VersionStatus("1", "serving"),
    VersionStatus("2", "stale", "its files are gone"),
    VersionStatus("3", "loading"),
    VersionStatus("4", "retiring"),
    VersionStatus("5", "incomplete", "its files are still changing"),
    VersionStatus("6", "failed", "weights.safetensors is damaged"),
    VersionStatus("10", "available"),
)


def info(version: str = "1", *, layout: RoutingLayout | None = None) -> ModelInfo:
    labels = [Label(index, f"class {index}" if index else "grüne Birne", None) for index in range(CLASSES)]
    options = {} if layout is None else {"layout": layout}
    return model_info("pear", version, labels=labels, image_size=SIZE, **options)  # type: ignore[arg-type]


class Models(FakeModels):
    """A model with two served versions, aliases, and one that can't be served now."""

    def aliases(self, name: str) -> Mapping[str, Alias]:
        return ALIASES if name == "pear" else {}

    def get(self, name: str | None = None, version: str | None = None, *, key: str | None = None) -> ServedModel:
        if (name, version) == ("pear", "6"):
            raise ModelUnavailable("Version 6 of pear can't be served: weights.safetensors is damaged.")
        alias = self.aliases(name or "").get(version or "")
        return super().get(name, alias.choose(key) if alias else version)


class Versions(NoVersions):
    def status(self) -> Mapping[str, list[VersionStatus]]:
        return {"pear": list(STATES)}


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, House]]:
    """A client of the REST front, and what stands below it; `options` are those of the gatekeeper."""
    async with _context(**options) as (context, house):
        transport = httpx.ASGITransport(create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, house


@contextlib.asynccontextmanager
async def opened_over_grpc() -> AsyncIterator[tuple[grpc.aio.Channel, House]]:
    """A channel to the gRPC services, and what stands below them."""
    async with _context() as (context, house):
        services = [prediction_service(context), model_service(context)]
        async with grpc_served(services, context) as served:
            yield served.channel, house


@contextlib.asynccontextmanager
async def _context(**options: Any) -> AsyncIterator[tuple[AppContext, House]]:
    house = House(models=Models(served_model(info("1")), served_model(info("2"))))
    house.free.set()
    house.readiness.loaded()
    with ThreadPoolExecutor(2) as threads:
        async with house.batcher:
            yield (
                AppContext(
                    images=ImagePipeline(house.plane, ImageDecoder(threads, max_pixels=10**6)),
                    models=house.models,
                    metrics=house.metrics,
                    exposition=RegistryExposition(house.metrics.registry),
                    limits=BodyLimits(max_body_bytes=10**6, max_images=MAX_IMAGES),
                    gatekeeper=Gatekeeper(house.readiness, request_timeout=60.0, **options),
                    readiness=house.readiness,
                    versions=Versions(),
                ),
                house,
            )


def photo(shade: int) -> bytes:
    """A picture whose class is `shade % CLASSES`."""
    return encode(Image.new("RGB", (SIZE, SIZE), (shade,) * 3), "PNG")


def b64(shade: int) -> dict[str, str]:
    return {"b64": base64.b64encode(photo(shade)).decode()}


def pixels(*shades: float, dtype: Any = int) -> list[Any]:
    """Rows of pixels, as lists."""
    return np.broadcast_to(np.array(shades, dtype)[:, None, None, None], (len(shades), SIZE, SIZE, 3)).tolist()


def probabilities(shades: Sequence[int]) -> np.ndarray:
    """What the network answers."""
    logits = 5 * np.eye(CLASSES)[np.array(shades) % CLASSES]
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True)
