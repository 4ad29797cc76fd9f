"""`/routing`: which experts images are routed to: one image, and live traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from condconv_serve.domain import ImageResult, ModelInfo, RoutedAnswer
from condconv_serve.errors import ModelNotFound, ModelUnavailable, RoutingNotFound, VersionNotFound
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.examples import EXAMPLE_REQUEST_ID
from condconv_serve.fronts.native.accept import preferred
from condconv_serve.fronts.native.answering import PROBLEMS, answer_images, in_time, request_body, written
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.remembering import remember
from condconv_serve.fronts.native.routing_formats import BY_TYPE, MEDIA_TYPES, OTHER_CONTENT, exported
from condconv_serve.fronts.native.routing_schemas import (
    ClassResponse,
    ExpertParameters,
    ExpertResponse,
    LiveParameters,
    LiveResponse,
    ModelParameters,
    RecentResponse,
    ResetParameters,
    ResetResponse,
    RoutedResponse,
    TracesParameters,
    WindowParameters,
    recent_response,
    routed_response,
)
from condconv_serve.fronts.native.schemas import MAX_NAME, ModelReference
from condconv_serve.fronts.security import needs_admin
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import facts_of
from condconv_serve.routing.insight import ClassMeans
from condconv_serve.routing.state import RoutingState
from condconv_serve.routing.statistics import WINDOWS, Window
from condconv_serve.routing.views import class_view, classes_to_ask, expert_classes_view, live_view
from condconv_serve.tasks.by_task import ByTask, options_of

_LIVE_PROBLEMS = problem_responses(
    "model_unavailable",
    "no_default_model",
    "model_not_found",
    "version_not_found",
    "routing_not_found",
    "invalid_parameter",
)


def router(context: AppContext) -> APIRouter:
    """The routes of routing."""
    routes = APIRouter(tags=["routing"])

    @routes.post(
        "/routing",
        summary="Show images' routing weights",
        response_model=RoutedResponse,
        response_model_exclude_none=True,
        responses={200: {"content": OTHER_CONTENT}, **PROBLEMS},
        openapi_extra=request_body({"top_k": 1}, TracesParameters),
    )
    async def routing(request: Request) -> Response:
        """Like `/predict`, or `/detect` if the model is a detector, but with routing weights, and with an `insight`.

        There is one weight from 0 to 1 for each expert of each CondConv block. The insight tells each block's entropy
        and strongest experts. It also tells how far the image is from two means: that of the model's reference profile,
        and that of images with the same predicted class. A detector's is that of the box with the highest score.

        Choose the form with `format` or the Accept header: JSON, CSV (a line per weight), NPZ (arrays for NumPy), or a
        picture of all images side by side (PNG or SVG).
        """
        parameters, answered = await answer_images(request, TracesParameters, context, task=_task)
        await remember(request, answered, context)
        chosen = parameters.format or preferred(request.headers.get("accept", ""), BY_TYPE, otherwise="json")
        if chosen == "json":
            seen = await _seen(answered.results, answered.model)
            return await written(request, lambda: routed_response(answered, live=seen))
        content = await unless_disconnected(request, in_time(exported(answered, chosen, context.drawer), request))
        return Response(content, media_type=MEDIA_TYPES[chosen])

    @routes.get(
        "/routing",
        summary="What live traffic does",
        response_model=LiveResponse,
        response_model_exclude_none=True,
        responses=_LIVE_PROBLEMS,
    )
    async def live(query: Annotated[LiveParameters, Query()]) -> LiveResponse:
        """Mean, deviation, histogram and load of every expert, entropy of every block, and drift from the reference.

        They cover all images that the model answered lately, from all senders. The images are not kept. With a
        detector, an image counts for each class of which a box has a score above 0.5.
        """
        model, found = await _live(query.model, query.version, query.window)
        view = await asyncio.to_thread(live_view, model, found, window=query.window, classes=query.classes)
        return LiveResponse.model_validate(view)

    @routes.get(
        "/routing/classes/{index}",
        summary="How a predicted class is routed",
        response_model=ClassResponse,
        response_model_exclude_none=True,
        responses=_LIVE_PROBLEMS,
    )
    async def of_class(
        index: Annotated[int, Path(ge=0, examples=[285])], query: Annotated[WindowParameters, Query()]
    ) -> ClassResponse:
        """Mean routing weights of the images of a predicted class, beside those of all images.

        With a detector they are the images in which the class was found, with a score above 0.5.
        """
        model = _model(query.model, query.version)
        if index >= len(model.labels):
            raise RoutingNotFound(f"{model.name} has the classes 0 to {len(model.labels) - 1}, but no {index}.")
        model, found = await _live(model.name, model.version, query.window)
        view = await asyncio.to_thread(class_view, model, found, index, window=query.window)
        return ClassResponse.model_validate(view)

    @routes.get(
        "/routing/experts/{block}/{expert}",
        summary="Which classes use an expert",
        response_model=ExpertResponse,
        response_model_exclude_none=True,
        responses=_LIVE_PROBLEMS,
    )
    async def of_expert(
        block: Annotated[str, Path(max_length=MAX_NAME, examples=["block_8"])],
        expert: Annotated[int, Path(ge=0, examples=[0])],
        query: Annotated[ExpertParameters, Query()],
    ) -> ExpertResponse:
        """The classes whose images give an expert the largest and the smallest weights on average."""
        model = _model(query.model, query.version)
        blocks = model.routing.blocks
        if block not in blocks:
            known = ", ".join(blocks) or "none"
            raise RoutingNotFound(f"{model.name} has no CondConv block {block[:100]!r}; there are: {known}.")
        number = blocks.index(block)
        if expert >= (experts := model.routing.experts[number]):
            raise RoutingNotFound(f"{block} has the experts 0 to {experts - 1}, but no {expert}.")
        model, found = await _live(model.name, model.version, query.window)
        view = await asyncio.to_thread(
            expert_classes_view,
            model,
            found,
            number,
            expert,
            window=query.window,
            top=query.top,
            min_images=query.min_images,
        )
        return ExpertResponse.model_validate(view)

    @routes.get(
        "/routing/state",
        summary="Live statistics to merge",
        response_class=Response,
        dependencies=[needs_admin],
        responses={
            200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
            **_LIVE_PROBLEMS,
        },
    )
    async def state(query: Annotated[ModelParameters, Query()]) -> Response:
        """One version's statistics as an NPZ file; of the default model if you name none.

        `condconv routing-state a.npz b.npz` adds up the files of several replicas, exactly. Needs the scope `admin`.
        """
        _, found = await _live(query.model, query.version, *WINDOWS)
        return Response(
            await asyncio.to_thread(found.pack),
            media_type="application/octet-stream",
            headers={"Content-Disposition": 'attachment; filename="routing.npz"'},
        )

    @routes.post(
        "/routing/reset",
        summary="Forget live statistics",
        response_model=ResetResponse,
        dependencies=[needs_admin],
        responses=_LIVE_PROBLEMS,
    )
    async def reset(query: Annotated[ResetParameters, Query()]) -> ResetResponse:
        """Set the statistics back to zero: of all models, of all versions of a model, or of one version.

        A version without a model is one of the default model.

        The metrics start again from zero, too. Needs the scope `admin`.
        """
        named = None
        if query.model is not None or query.version is not None:
            named = _model(query.model, query.version)
        if context.routing is None:
            return ResetResponse(reset=[])
        of_version = None if named is None or query.version is None else named.version
        chosen = list(await context.routing.reset(None if named is None else named.name, of_version))
        if named is not None and (named.name, named.version) not in chosen:  # it has answered nothing yet
            chosen.append((named.name, named.version))
        return ResetResponse(reset=[ModelReference(name=name, version=version) for name, version in chosen])

    def _model(name: str | None, version: str | None) -> ModelInfo:
        model = context.models.get(name, version).info
        if context.routing is None:
            raise RoutingNotFound("This server keeps no routing statistics; CONDCONV_ROUTING_STATISTICS is off.")
        return model

    async def _live(name: str | None, version: str | None, *windows: Window) -> tuple[ModelInfo, RoutingState]:
        model = _model(name, version)
        found = None
        if context.routing is not None:
            found = await context.routing.state(model.name, model.version, windows)
        if found is None or found.layout != model.routing:  # it has answered nothing yet
            found = RoutingState.empty(model.routing, model=model.name, version=model.version, windows=windows)
        return model, found

    async def _seen(results: Sequence[ImageResult[RoutedAnswer]], model: ModelInfo | None) -> ClassMeans:
        if model is None or context.routing is None:
            return {}
        answers = (result.prediction for result in results if result.prediction is not None)
        if not (classes := classes_to_ask(answers, model)):
            return {}
        return await context.routing.class_means(model.name, model.version, classes)

    # After /routing/state, so that `state` isn't taken for a request's id.
    @routes.get(
        "/routing/{request_id}",
        summary="The routing of a recent request",
        response_model=RecentResponse,
        response_model_exclude_none=True,
        responses=problem_responses("routing_not_found", "invalid_parameter"),
    )
    async def of_request(
        request: Request, request_id: Annotated[str, Path(max_length=128, examples=[EXAMPLE_REQUEST_ID])]
    ) -> Response:
        """The answer to a recent request of yours, by its `X-Request-Id`.

        Only the newest requests are kept, and only the API key that sent a request can read it.
        """
        if context.recent is None:
            raise RoutingNotFound("This server keeps no recent requests.")
        found = await context.recent.find(request_id, owner=facts_of(request.scope).key_name)
        try:
            model = context.models.get(found.model, found.version).info
        except (ModelNotFound, ModelUnavailable, VersionNotFound):  # no longer served
            model = None
        seen = await _seen(found.results, model)
        return await written(request, lambda: recent_response(found, model, live=seen))

    return routes


def _task(parameters: TracesParameters) -> ByTask:
    names = (*options_of("classification"), *options_of("detection"))
    return ByTask(parameters.model_dump(include=set(names), exclude_unset=True, exclude_none=True))
