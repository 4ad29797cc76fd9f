"""`POST /detect`: images in, objects with their boxes out, and routing weights on request."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.answering import PROBLEMS, answer_images, request_body, written
from condconv_serve.fronts.native.detection_schemas import DetectParameters, DetectResponse, detect_response
from condconv_serve.fronts.native.remembering import remember
from condconv_serve.tasks.detection import Detect


def router(context: AppContext) -> APIRouter:
    """The route of detections."""
    routes = APIRouter(tags=["predict"])

    @routes.post(
        "/detect",
        summary="Find objects in images",
        response_model=DetectResponse,
        responses=PROBLEMS,
        openapi_extra=request_body({"score_threshold": 0.3, "routing": True}, DetectParameters),
    )
    async def detect(request: Request) -> Response:
        """Return the objects in each image: class, score and box; and the image's routing weights if asked for.

        It needs a model for detection; `GET /models` says what each model is for.

        A box is given in pixels of the photo as you see it, rotated as EXIF says, whatever the network was shown of it,
        and as shares of its width and height.

        Send images as for `/predict`; those that can't be used are told likewise.
        """
        parameters, answered = await answer_images(request, DetectParameters, context, task=_task, needs="detection")
        await remember(request, answered, context)
        return await written(request, lambda: detect_response(answered, routing=parameters.routing))

    return routes


def _task(parameters: DetectParameters) -> Detect:
    return Detect(
        score_threshold=parameters.score_threshold,
        iou_threshold=parameters.iou_threshold,
        max_detections=parameters.max_detections,
    )
