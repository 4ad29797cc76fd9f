"""`POST /routing/ablation`: what the answer would have been with different routing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request

from condconv_serve.domain import Ablator, ImageSource, ServedModel, Variant
from condconv_serve.errors import InvalidParameter, TooManyImages
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.native.ablation_schemas import (
    AblationParameters,
    AblationQuery,
    AblationResponse,
    AblationTimingsBody,
    ChangeBody,
    VariantBody,
)
from condconv_serve.fronts.native.answering import SLUGS, request_body
from condconv_serve.fronts.native.images import read_query, read_request
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import ClassBody, ModelReference, milliseconds, routing_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.scope import facts_of
from condconv_serve.tasks import ablation as task
from condconv_serve.tasks.ablation import AblationAnswer

EXAMPLE = {"variants": [{"changes": [{"block": "block_8", "off": [0]}, {"block": "block_15", "uniform": True}]}]}


def router(context: AppContext) -> APIRouter:
    """The route of ablations."""
    routes = APIRouter(tags=["routing"])

    @routes.post(
        "/routing/ablation",
        summary="Switch experts off",
        response_model=AblationResponse,
        response_model_exclude_none=True,
        responses=problem_responses(*SLUGS, "ablation_busy", "store_unavailable", "too_little_memory"),
        openapi_extra=request_body(EXAMPLE, AblationQuery),
    )
    async def ablation(request: Request) -> AblationResponse:
        """What the answer to one image would be without an expert: each one in turn, or the `variants` that you give.

        A variant changes the routing of some blocks: experts switched off (weight 0), all experts alike (`uniform`), or
        the `weights` that you give. All other blocks compute their routing as usual, from the changed features.

        Ablations are computed with TensorFlow in float32, whichever engine serves. They run one at a time beside the
        ordinary traffic; if too many wait, the answer is 429. The first ablation of a model takes a few seconds longer.
        """
        facts = facts_of(request.scope)
        context.gatekeeper.check_ready()
        query = read_query(request, AblationParameters)
        context.models.get(query.model, query.version)
        _ablator(context).check()
        parameters, images = await read_request(request, query, context.limits)
        if len(images) > 1:
            raise TooManyImages(f"An ablation takes one image, not {len(images)}.")
        model = context.models.get(parameters.model, parameters.version)
        facts.model, facts.rows = f"{model.name}/{model.version}", 1
        variants = _variants(model, parameters)
        facts.deadline = context.gatekeeper.deadline(parameters.timeout_ms)
        return await unless_disconnected(request, _ablate(model, images[0], variants, parameters, facts.deadline))

    async def _ablate(
        model: ServedModel,
        image: ImageSource,
        variants: Sequence[Variant],
        parameters: AblationParameters,
        deadline: float,
    ) -> AblationResponse:
        started = time.monotonic()
        overrides = task.overrides(model.info, variants)
        with _ablator(context).admit():
            made = await context.images.decoder.decode(image.data, model, deadline=deadline)
            ablated = await _ablator(context).ablate(model, made.row, overrides, deadline=deadline)
        answer = task.answer(model.info, variants, ablated.output)
        return AblationResponse(
            model=ModelReference(name=model.name, version=model.version),
            id=image.id if image.id is not None else "0",
            filename=image.filename,
            top=ClassBody.model_validate(answer.top, from_attributes=True),
            routing=routing_body(answer.routing),
            variants=_bodies(answer, routing=parameters.routing),
            timings_ms=AblationTimingsBody(
                decode=milliseconds(made.seconds),
                queue=milliseconds(ablated.queue),
                inference=milliseconds(ablated.inference),
                total=milliseconds(time.monotonic() - started),
            ),
        )

    return routes


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


def _bodies(answer: AblationAnswer, *, routing: bool) -> list[VariantBody]:
    return [
        VariantBody(
            name=found.variant.name,
            changes=[ChangeBody.of(change) for change in found.variant.changes],
            probability=found.probability,
            difference=found.difference,
            top=ClassBody.model_validate(found.top, from_attributes=True),
            same_top=found.same_top,
            routing=routing_body(found.routing) if routing else None,
        )
        for found in answer.variants
    ]
