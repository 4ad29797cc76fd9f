"""Answers as a server gives them."""

from __future__ import annotations

import re
from typing import Any

import httpx

MODEL = {"name": "m", "version": "3"}


def entry(number: int, **more: Any) -> dict[str, Any]:
    """The answer for an image."""
    return {
        "id": str(number),
        "classes": [{"index": number, "label": f"class {number}", "synset": "n1", "probability": 0.75}],
        "timings_ms": {"decode": 1.0, "queue": 2.0, "inference": 3.5, "total": 7.0},
        "batch_size": 4,
        **more,
    }


def predictions(*entries: dict[str, Any]) -> httpx.Response:
    """The answer to a request."""
    return httpx.Response(200, json={"model": MODEL, "predictions": entries}, headers={"X-Request-Id": "r1"})


def for_each_image(request: httpx.Request) -> httpx.Response:
    """An answer for each image of a request, whose class is the image's only byte."""
    return predictions(*(entry(image[0]) for image in images_of(request)))


def images_of(request: httpx.Request) -> list[bytes]:
    """The images of a request."""
    kind = request.headers["content-type"]
    if kind == "application/octet-stream":
        return [request.content]
    boundary = re.fullmatch("multipart/form-data; boundary=(.+)", kind)
    assert boundary, kind
    parts = request.content.split(b"--" + boundary[1].encode())[1:-1]
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]


def problem(slug: str, status: int, detail: str = "What was wrong.", **more: Any) -> httpx.Response:
    """An error."""
    headers = {"content-type": "application/problem+json", "X-Request-Id": "r9"}
    return httpx.Response(
        status,
        json={"slug": slug, "detail": detail, "status": status, "title": "", "type": "", **more},
        headers=headers,
    )
