"""The REST front of TensorFlow Serving, asked in its own words and heard in those of all fronts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image
from starlette.types import ASGIApp

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.tfserving import create_app
from tests.contract.heard import Heard
from tests.contract.slugs import SLUG, telling_slugs
from tests.pictures import encode


def tensorflow_serving(context: AppContext) -> ASGIApp:
    """The front."""
    return telling_slugs(create_app(context))


async def ask_tensorflow_serving(
    client: httpx.AsyncClient, shades: Sequence[int], *, headers: Any, params: Any
) -> Heard:
    pictures = [encode(Image.new("RGB", (32, 32), (shade,) * 3), "PNG") for shade in shades]
    response = await client.post(
        f"/v1/models/{params.get('model', 'fake')}:predict",
        json={
            "signature_name": "logits",
            "instances": [{"b64": base64.b64encode(picture).decode()} for picture in pictures],
        },
        headers=headers,
        params={name: params[name] for name in ("priority", "timeout_ms") if name in params},
    )
    request_id, body = response.headers["x-request-id"], response.json()
    if response.status_code != 200:
        assert body.keys() == {"error"}
        return Heard(response.status_code, response.headers[SLUG], [], request_id)
    classes = np.argmax(body["predictions"], axis=1).tolist()
    return Heard(200, None, classes, request_id, response.headers.get("cache-status"))
