"""The REST front over a running plane whose network is a fake, and requests of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from PIL import Image

from condconv_serve.fronts.context import AppContext, BodyLimits, VersionAdmin
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.keys import KeyRing
from condconv_serve.fronts.oip import create_app
from condconv_serve.imaging import ImageDecoder
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.telemetry.exposition import RegistryExposition
from tests.contract.fakes import NoVersions
from tests.contract.fronts import House
from tests.pictures import encode

MAX_BODY_BYTES = 200_000
MAX_ROWS = 5
SIZE = 32
INFER = "/v2/models/fake/infer"


@contextlib.asynccontextmanager
async def opened(
    house: House | None = None, *, keys: KeyRing | None = None, versions: VersionAdmin | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the front; `options` are those of `create_app`."""
    house = house or House()
    house.free.set()
    house.readiness.loaded()
    gatekeeper = Gatekeeper(house.readiness, keys=keys, request_timeout=60.0)
    with ThreadPoolExecutor(2) as decoders:
        context = AppContext(
            images=ImagePipeline(house.plane, ImageDecoder(decoders, max_pixels=10**6)),
            models=house.models,
            metrics=house.metrics,
            exposition=RegistryExposition(house.metrics.registry),
            limits=BodyLimits(max_body_bytes=MAX_BODY_BYTES, max_images=MAX_ROWS),
            gatekeeper=gatekeeper,
            readiness=house.readiness,
            versions=versions or NoVersions(),
            tallies=house.tallies,
        )
        async with house.batcher:
            transport = httpx.ASGITransport(create_app(context, **options))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                client.headers["Accept-Encoding"] = "identity"
                yield client


def picture(shade: int) -> bytes:
    """A picture whose class is its shade, of six classes."""
    return encode(Image.new("RGB", (SIZE, SIZE), (shade,) * 3), "PNG")


def pixels(*shades: int, dtype: Any = np.uint8) -> np.ndarray:
    """Rows whose classes are their shades."""
    return np.broadcast_to(np.array(shades, dtype)[:, None, None, None], (len(shades), SIZE, SIZE, 3)).copy()


def raw_images(*images: bytes) -> bytes:
    return b"".join(len(image).to_bytes(4, "little") + image for image in images)


def image_input(count: int, **more: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [count], "datatype": "BYTES", **more}


def pixel_input(rows: np.ndarray, **more: Any) -> dict[str, Any]:
    datatype = {"uint8": "UINT8", "float32": "FP32"}[rows.dtype.name]
    return {"name": "pixels", "shape": list(rows.shape), "datatype": datatype, **more}


def binary(head: Mapping[str, Any], raw: bytes) -> dict[str, Any]:
    """A request with raw bytes behind its JSON, for `client.post`."""
    text = json.dumps(head).encode()
    return {"content": text + raw, "headers": {"Inference-Header-Content-Length": str(len(text))}}


def binary_images(*images: bytes, **more: Any) -> dict[str, Any]:
    raw = raw_images(*images)
    only = image_input(len(images), parameters={"binary_data_size": len(raw)})
    return binary({"inputs": [only], **more}, raw)


def tensors(response: httpx.Response) -> dict[str, Any]:
    """The outputs of an answer by name, as arrays; text as nested lists."""
    assert response.status_code == 200, response.text
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    body, raw = json.loads(response.content[:length]), response.content[length:]
    found = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            data: Any = output["data"]
        else:
            data, raw = raw[:size], raw[size:]
            data = _texts(data) if output["datatype"] == "BYTES" else np.frombuffer(data, "<f4")
        dtype = object if output["datatype"] == "BYTES" else np.float32
        found[output["name"]] = np.array(data, dtype).reshape(output["shape"])
    assert not raw
    return found


def _texts(raw: bytes) -> list[str]:
    texts = []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts
