"""The forms of `POST /routing`'s answer other than JSON."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from condconv_serve.domain import Answered, Detection, RoutedAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.native.routing_schemas import RoutingFormat
from condconv_serve.routing.drawer import Drawer
from condconv_serve.routing.export import to_csv, to_npz
from condconv_serve.routing.provenance import Provenance

MAX_PICTURED = 16
"""Most images in a picture."""
MEDIA_TYPES: dict[RoutingFormat, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "npz": "application/octet-stream",
    "png": "image/png",
    "svg": "image/svg+xml",
}
OTHER_CONTENT: dict[str, Any] = {
    "text/csv": {"schema": {"type": "string"}},
    **{MEDIA_TYPES[name]: {"schema": {"type": "string", "format": "binary"}} for name in ("npz", "png", "svg")},
}
"""OpenAPI entries."""
BY_TYPE: dict[str, RoutingFormat] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/octet-stream": "npz",
    "application/x-npz": "npz",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/*": "png",
    "text/*": "csv",
}
"""Forms by the media types of an Accept header."""


async def exported(answered: Answered[RoutedAnswer], form: RoutingFormat, drawer: Drawer) -> bytes:
    """Put the routing of images into a form; `drawer` draws the pictures.

    Raises:
        InvalidParameter: more images than a picture shows, or a static network, which has nothing to draw.
        ServiceError: the first image's error, if there is no image to draw.
    """
    model, results = answered.model, answered.results
    if form == "csv":
        return to_csv(results)
    if form == "npz":
        made_by = Provenance.of(model.manifest, "POST /routing")
        return await asyncio.to_thread(to_npz, results, model.routing, made_by=made_by)
    if len(results) > MAX_PICTURED:
        raise InvalidParameter(
            f"A picture shows at most {MAX_PICTURED} images, not {len(results)}; json, csv and npz hold any number."
        )
    traces = [
        (f"{result.filename or f'image {result.id}'}\n{_said(result.prediction)}", result.prediction.routing)
        for result in results
        if result.prediction is not None
    ]
    if not traces:
        raise next(r.error for r in results if r.error is not None)
    return await drawer.draw(traces, form, Provenance.of(model.manifest, "POST /routing"))


def _said(answer: RoutedAnswer) -> str:
    """What was seen in an image, in a few words."""
    if isinstance(answer, Detection):
        counted = Counter(found.label for found in answer.objects)
        return ", ".join(f"{count} {label}" for label, count in counted.most_common()) or "nothing found"
    return f"{answer.best.label} {answer.best.probability:.0%}"
