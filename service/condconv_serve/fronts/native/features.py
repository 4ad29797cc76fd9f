"""`POST /features`: images in, feature vectors out."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from condconv_serve.domain import Answered
from condconv_serve.errors import InvalidParameter
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.accept import preferred
from condconv_serve.fronts.native.answering import PROBLEMS, answer_images, in_time, request_body
from condconv_serve.fronts.native.feature_schemas import (
    MODEL_HEADER,
    SHAPE_HEADER,
    FeaturesFormat,
    FeaturesParameters,
    FeaturesResponse,
    features_response,
)
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.routing.provenance import Provenance
from condconv_serve.tasks.feature_files import to_bytes, to_csv, to_npz
from condconv_serve.tasks.features import Embed, Embedding, features_of

_MEDIA_TYPES: dict[FeaturesFormat, str] = {
    "json": "application/json",
    "npz": "application/x-npz",
    "csv": "text/csv; charset=utf-8",
    "raw": "application/octet-stream",
}
_BY_TYPE: dict[str, FeaturesFormat] = {
    "application/json": "json",
    "application/x-npz": "npz",
    "text/csv": "csv",
    "text/*": "csv",
    "application/octet-stream": "raw",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_OK = {
    "content": {"text/csv": {"schema": {"type": "string"}}, **{_MEDIA_TYPES[form]: _BINARY for form in ("npz", "raw")}},
    "headers": {
        SHAPE_HEADER: {
            "description": "Images and features, such as `2,1280`; of all forms but JSON.",
            "schema": {"type": "string"},
        },
        MODEL_HEADER: {
            "description": "The model and version that answered, such as `lite0/1`; of all forms but JSON.",
            "schema": {"type": "string"},
        },
    },
}


def router(context: AppContext) -> APIRouter:
    """The route of features."""
    routes = APIRouter(tags=["predict"])

    @routes.post(
        "/features",
        summary="Embed images",
        response_model=FeaturesResponse,
        responses={200: _OK, **PROBLEMS},
        openapi_extra=request_body({"logits": True}, FeaturesParameters, kept=False),
    )
    async def features(request: Request) -> Response:
        """Return each image's features: the vector of which the model's last layer makes the class scores.

        Images that look alike have features that point in about the same direction, also images of classes that the
        model doesn't know. Compare only features of the same version of a model.

        Send images as for `/predict`; those that can't be used are told likewise. Choose the form with `format` or the
        Accept header: JSON, NPZ (arrays for NumPy; `application/x-npz`), CSV (a line per image), or `raw`
        (`application/octet-stream`): float32, little-endian, one image after the other. In NPZ and `raw` the numbers of
        an image that failed are NaN.
        """
        parameters, answered = await answer_images(
            request,
            FeaturesParameters,
            context,
            task=lambda asked: _task(asked, _form(asked, request)),
            needs="classification",
        )
        form = _form(parameters, request)
        written = asyncio.to_thread(_written, answered, form)  # as many numbers as there are would hold up the loop
        content = await unless_disconnected(request, in_time(written, request))
        return Response(content, media_type=_MEDIA_TYPES[form], headers=_headers(answered, form))

    return routes


def _form(parameters: FeaturesParameters, request: Request) -> FeaturesFormat:
    return parameters.format or preferred(request.headers.get("accept", ""), _BY_TYPE, otherwise="json")


def _task(parameters: FeaturesParameters, form: FeaturesFormat) -> Embed:
    if form == "raw" and parameters.logits:
        raise InvalidParameter("The form `raw` (application/octet-stream) has no room for logits; json, npz, csv have.")
    return Embed(parameters.logits)


def _written(answered: Answered[Embedding], form: FeaturesFormat) -> bytes:
    if form == "json":
        return features_response(answered).model_dump_json(exclude_none=True).encode()
    features = features_of(answered.model)
    if form == "npz":
        made_by = Provenance.of(answered.model.manifest, "POST /features")
        return to_npz(answered.results, features, made_by=made_by)
    return (to_csv if form == "csv" else to_bytes)(answered.results, features)


def _headers(answered: Answered[Embedding], form: FeaturesFormat) -> dict[str, str]:
    if form == "json":
        return {}
    model = answered.model
    return {
        SHAPE_HEADER: f"{len(answered.results)},{features_of(model)}",
        MODEL_HEADER: f"{model.name}/{model.version}",
    }
