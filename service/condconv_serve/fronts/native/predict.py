"""`POST /predict`: images in, classes out, and routing weights on request."""

from __future__ import annotations

from fastapi import APIRouter, Request

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.answering import PROBLEMS, answer_images, request_body
from condconv_serve.fronts.native.remembering import remember
from condconv_serve.fronts.native.schemas import PredictParameters, PredictResponse, predict_response
from condconv_serve.tasks.classification import Classify


def router(context: AppContext) -> APIRouter:
    """The routes of predictions."""
    routes = APIRouter(tags=["predict"])

    @routes.post(
        "/predict",
        summary="Classify images",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses=PROBLEMS,
        openapi_extra=request_body({"top_k": 3, "routing": True}, PredictParameters),
    )
    async def predict(request: Request) -> PredictResponse:
        """Return the most probable classes of each image, and its routing weights if asked for.

        One entry per image, in order. If one of several images can't be used, its entry has an `error`, and the others
        are answered. If you send one image and it can't be used, the response is an error.

        Give parameters in the query, or in a JSON or form body. A raw image: `curl --data-binary @photo.jpg`; files:
        `curl -F image=@a.jpg -F image=@b.png`.
        """
        parameters, classification = await answer_images(
            request,
            PredictParameters,
            context,
            task=lambda asked: Classify(asked.top_k, asked.threshold),
            needs="classification",
        )
        await remember(request, classification, context)
        return predict_response(classification, routing=parameters.routing)

    return routes
