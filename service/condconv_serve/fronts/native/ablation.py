"""`POST /routing/ablation`: what the answer would have been with different routing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from condconv_serve.deadline import ending_at
from condconv_serve.domain import Ablator, ImageSource, ModelInfo, Placement, ServedModel, Tensors, Variant
from condconv_serve.errors import InvalidParameter, TooManyImages
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.ablation_schemas import (
    AblationParameters,
    AblationQuery,
    AblationResponse,
    AblationTimingsBody,
    variant_body,
)
from condconv_serve.fronts.native.answering import SLUGS, request_body, written
from condconv_serve.fronts.native.detection_ablation_schemas import DetectionAblationResponse, detection_variant_body
from condconv_serve.fronts.native.detection_schemas import object_body
from condconv_serve.fronts.native.images import read_query, read_request
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import ModelReference, class_body, milliseconds, routing_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import facts_of
from condconv_serve.tasks import ablation as task
from condconv_serve.tasks import detection_ablation
from condconv_serve.tasks.ablation import AblationAnswer
from condconv_serve.tasks.by_task import options_of
from condconv_serve.tasks.detection import Detect, whole_row
from condconv_serve.tasks.detection_ablation import DetectionAblation, check_size

EXAMPLE = {"variants": [{"changes": [{"block": "block_8", "off": [0]}, {"block": "block_15", "uniform": True}]}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What an ablation found: one of the tasks' answers, about a photo of this size, and where the time went."""

    answer: AblationAnswer | DetectionAblation
    placement: Placement
    timings: AblationTimingsBody


def router(context: AppContext) -> APIRouter:
    """The route of ablations."""
    routes = APIRouter(tags=["routing"])

    @routes.post(
        "/routing/ablation",
        summary="Switch experts off",
        response_model=AblationResponse | DetectionAblationResponse,
        responses=problem_responses(*SLUGS, "ablation_busy", "store_unavailable", "too_little_memory"),
        openapi_extra=request_body(EXAMPLE, AblationQuery, kept=False, cached=False),
    )
    async def ablation(request: Request) -> Response:
        """What the answer to one image would be without an expert: each one in turn, or the `variants` that you give.

        A variant changes the routing of some blocks: experts switched off (weight 0), all experts alike (`uniform`), or
        the `weights` that you give. All other blocks compute their routing as usual, from the changed features.

        A classifier's answer is its best class. Of a detector you see which objects are still found, which are lost and
        which are new, and how their scores change.

        Ablations are computed with TensorFlow in float32, whichever engine serves. They run one at a time beside the
        ordinary traffic; if too many wait, the answer is 429. The first ablation of a model takes a few seconds longer.
        """
        facts = facts_of(request.scope)
        context.gatekeeper.check_ready()
        query = read_query(request, AblationParameters)
        context.models.get(query.model, query.version)
        await _ablator(context).check()
        parameters, images = await read_request(request, query, context.limits)
        if len(images) > 1:
            raise TooManyImages(f"An ablation takes one image, not {len(images)}.")
        with context.models.lease(parameters.model, parameters.version) as model:
            facts.model, facts.rows = f"{model.name}/{model.version}", 1
            variants, detect = _variants(model, parameters), _detect(model.info, parameters)
            if detect is not None:
                check_size(len(variants), detect)
            facts.deadline = context.gatekeeper.deadline(parameters.timeout_ms)
            found = await unless_disconnected(request, _ablate(model, images[0], variants, detect, facts.deadline))
        return await written(request, lambda: _response(model.info, images[0], found, routing=parameters.routing))

    async def _ablate(
        model: ServedModel, image: ImageSource, variants: Sequence[Variant], detect: Detect | None, deadline: float
    ) -> _Found:
        started, queue, inference, info = time.monotonic(), 0.0, 0.0, model.info
        parts: list[AblationAnswer | DetectionAblation] = []
        async with _ablator(context).admit():
            made = await context.images.decoder.decode(image.data, model, deadline=deadline)
            placement = made.placement or whole_row(info)
            for some in task.in_groups(info, variants):
                ablated = await _ablator(context).ablate(model, made.row, task.overrides(info, some), deadline=deadline)
                queue, inference = queue + ablated.queue, inference + ablated.inference
                async with ending_at(deadline):
                    parts.append(await asyncio.to_thread(_compared, info, some, ablated.output, detect, placement))
        timings = AblationTimingsBody(
            decode=milliseconds(made.seconds),
            queue=milliseconds(queue),
            inference=milliseconds(inference),
            total=milliseconds(time.monotonic() - started),
        )
        return _Found(answer=_joined(parts), placement=placement, timings=timings)

    return routes


def _compared(
    model: ModelInfo, variants: Sequence[Variant], output: Tensors, detect: Detect | None, placement: Placement
) -> AblationAnswer | DetectionAblation:
    if detect is None:
        return task.answer(model, variants, output)
    return detection_ablation.answer(model, variants, output, detect=detect, placement=placement)


def _joined(parts: Sequence[Any]) -> Any:
    """One answer of several, which have some of the variants each."""
    return replace(parts[0], variants=tuple(one for part in parts for one in part.variants))


def _ablator(context: AppContext) -> Ablator:
    if context.ablator is None:
        raise InvalidParameter("This server computes no ablations.")
    return context.ablator


def _variants(model: ServedModel, parameters: AblationParameters) -> tuple[Variant, ...]:
    """The variants that the request asks for, each with a name.

    Raises:
        InvalidParameter: there is no such block or expert, or too many variants.
    """
    if parameters.variants is None:
        variants = task.without_each_expert(
            model.info, blocks=parameters.blocks, experts=parameters.experts, uniform=parameters.uniform
        )
    elif parameters.blocks is not None or parameters.experts is not None:
        raise InvalidParameter("Give variants, or blocks and experts, not both.")
    else:
        variants = tuple(variant.to_domain() for variant in parameters.variants)
    return task.checked(model.info, variants)


def _detect(model: ModelInfo, parameters: AblationParameters) -> Detect | None:
    """Which boxes count as objects; None for a classifier.

    Raises:
        InvalidParameter: options of detectors for a classifier.
    """
    given = parameters.model_dump(include=set(options_of("detection")), exclude_none=True)
    if model.task == "detection":
        return Detect(**given)
    if given:
        raise InvalidParameter(f"{', '.join(given)}: for detectors only, and {model.name} is for {model.task}.")
    return None


def _response(
    model: ModelInfo, image: ImageSource, found: _Found, *, routing: bool
) -> AblationResponse | DetectionAblationResponse:
    answer = found.answer
    named: dict[str, Any] = {
        "model": ModelReference(name=model.name, version=model.version),
        "id": image.id if image.id is not None else "0",
        "filename": image.filename,
        "routing": routing_body(answer.routing),
        "timings_ms": found.timings,
    }
    if isinstance(answer, AblationAnswer):
        return AblationResponse.model_construct(
            **named,
            top=class_body(answer.top),
            variants=[variant_body(one, routing=routing) for one in answer.variants],
        )
    return DetectionAblationResponse.model_construct(
        **named,
        width=found.placement.photo_width,
        height=found.placement.photo_height,
        detections=[object_body(one) for one in answer.objects],
        variants=[detection_variant_body(one, routing=routing) for one in answer.variants],
    )
