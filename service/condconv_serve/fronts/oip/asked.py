"""What all routes read from a request: which model it names, and a small JSON body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request

from condconv_serve.fronts.json_documents import parse
from condconv_serve.fronts.oip.names import check_lengths
from condconv_serve.http.body import read_body

MAX_SMALL_BYTES = 64 * 1024
"""Most bytes of a body that holds no tensors."""


def named_model(request: Request) -> tuple[str, str | None]:
    """Name and version, or alias, of the model in a request's path.

    FastAPI could read them, too, but that takes a tenth of the event loop's time per request.

    Raises:
        InvalidParameter: one is too long for a name.
    """
    name, version = request.path_params["model"], request.path_params.get("version")
    check_lengths(name, version or "")
    return name, version


async def read_small(request: Request) -> Mapping[str, Any]:
    """Read a JSON object, or nothing, which means an empty one.

    Raises:
        MalformedBody: no JSON object. Others: as `read_body`.
    """
    body = await read_body(request, MAX_SMALL_BYTES)
    return parse(body) if body.strip() else {}
