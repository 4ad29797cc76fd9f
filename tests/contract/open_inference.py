"""The REST front of the Open Inference Protocol, asked in its own words and heard in those of all fronts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image
from starlette.types import ASGIApp

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.oip import create_app
from tests.contract.heard import Heard
from tests.contract.slugs import SLUG, telling_slugs
from tests.pictures import encode


def open_inference(context: AppContext) -> ASGIApp:
    """The front."""
    return telling_slugs(create_app(context))


async def ask_open_inference(client: httpx.AsyncClient, shades: Sequence[int], *, headers: Any, params: Any) -> Heard:
    pictures = [encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades]
    raw = b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)
    parameters = {"priority": params["priority"]} if "priority" in params else {}
    if "timeout_ms" in params:
        parameters["timeout"] = params["timeout_ms"] * 1000
    only = {
        "name": "image",
        "shape": [len(pictures)],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"parameters": parameters, "inputs": [only], "outputs": [{"name": "logits"}]}).encode()
    response = await client.post(
        f"/v2/models/{params.get('model', 'fake')}/infer",
        content=head + raw,
        headers={**headers, "Inference-Header-Content-Length": str(len(head))},
    )
    request_id, body = response.headers["x-request-id"], response.json()
    if response.status_code != 200:
        assert body.keys() == {"error"}
        return Heard(response.status_code, response.headers[SLUG], [], request_id)
    (logits,) = body["outputs"]
    classes = np.reshape(logits["data"], logits["shape"]).argmax(axis=1).tolist()
    return Heard(200, None, classes, request_id, response.headers.get("cache-status"))
