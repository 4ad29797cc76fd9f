"""`POST /routing/ablation`: what the answer would have been with other routings."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request

from condconv_serve.domain import Ablated, Ablator, ImageSource, RoutingOverrides, RoutingTrace, ServedModel
from condconv_serve.errors import InvalidParameter, TooManyImages
from condconv_serve.fronts.native.ablation_schemas import (
    MAX_VARIANTS,
    AblationParameters,
    AblationQuery,
    AblationResponse,
    AblationTimingsBody,
    Change,
    Variant,
    VariantBody,
)
from condconv_serve.fronts.native.body import read_query, read_request
from condconv_serve.fronts.native.classification import PROBLEMS, request_body, wait_of
from condconv_serve.fronts.native.context import Parts
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import ClassBody, ModelReference, routing_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.tasks.classification import softmax, top_classes

EXAMPLE = {"variants": [{"changes": [{"block": "block_8", "off": [0]}, {"block": "block_15", "uniform": True}]}]}


def router(parts: Parts) -> APIRouter:
    """The route of ablations."""
    routes = APIRouter(tags=["routing"])

    @routes.post(
        "/routing/ablation",
        summary="Switch experts off",
        response_model=AblationResponse,
        response_model_exclude_none=True,
        responses={**PROBLEMS, **problem_responses("ablation_busy", "queue_full")},
        openapi_extra=request_body(EXAMPLE, AblationQuery),
    )
    async def ablation(request: Request) -> AblationResponse:
        """What one image's answer would have been without an expert, for each block and expert, or as `variants` say.

        A variant changes the routing of some blocks: experts switched off (weight 0), all experts alike (`uniform`), or
        given `weights`. All other blocks are routed by the model itself, as it then sees fit. Computed in float32 with
        TensorFlow, whichever engine serves, one request after the other beside the ordinary traffic; 429 if too many
        wait. The first one for a model takes some seconds longer.
        """
        if reason := parts.readiness.refusal():
            raise reason
        query = read_query(request, AblationParameters)
        parts.models.get(query.model, query.version)
        _ablator(parts).check()
        parameters, images = await read_request(request, query, parts.limits)
        if len(images) > 1:
            raise TooManyImages(f"An ablation is of one image, not of {len(images)}.")
        model = parts.models.get(parameters.model, parameters.version)
        request.scope["condconv.model"], request.scope["condconv.rows"] = f"{model.name}/{model.version}", 1
        variants = _variants(model, parameters)
        deadline = time.monotonic() + wait_of(parameters.timeout_ms, parts.request_timeout)
        return await unless_disconnected(request, _ablate(model, images[0], variants, parameters, deadline))

    async def _ablate(
        model: ServedModel,
        image: ImageSource,
        variants: Sequence[Variant],
        parameters: AblationParameters,
        deadline: float,
    ) -> AblationResponse:
        started = time.monotonic()
        overrides = _overrides(model, variants)
        with _ablator(parts).admit():
            row, decode = await parts.classifier.decode(image, model, deadline=deadline)
            ablated = await _ablator(parts).ablate(model, row, overrides, deadline=deadline)
        return _response(
            model,
            image,
            variants,
            ablated,
            routing=parameters.routing,
            timings=AblationTimingsBody(
                decode=round(decode * 1e3, 3),
                queue=round(ablated.queue * 1e3, 3),
                inference=round(ablated.inference * 1e3, 3),
                total=round((time.monotonic() - started) * 1e3, 3),
            ),
        )

    return routes


def _ablator(parts: Parts) -> Ablator:
    if parts.ablator is None:
        raise InvalidParameter("This server computes no ablations.")
    return parts.ablator


def _variants(model: ServedModel, parameters: AblationParameters) -> list[Variant]:
    """The variants that are asked for, with names.

    Raises:
        InvalidParameter: there is no such block or expert, or too many variants.
    """
    if not model.routing_blocks:
        raise InvalidParameter(f"{model.name} is a static network, without routing that could be changed.")
    if parameters.variants is not None:
        if parameters.blocks is not None or parameters.experts is not None:
            raise InvalidParameter("Give variants, or blocks and experts, not both.")
        variants = parameters.variants
    else:
        blocks = parameters.blocks or list(model.routing_blocks)
        counts = dict(zip(model.routing_blocks, model.experts, strict=True))
        chosen: dict[str, Sequence[int]] = {
            block: range(counts.get(block, min(model.experts))) if parameters.experts is None else parameters.experts
            for block in blocks
        }
        count = sum(len(chosen[block]) + parameters.uniform for block in blocks)
        if not 1 <= count <= MAX_VARIANTS:
            raise InvalidParameter(
                f"These are {count} variants; there may be 1 to {MAX_VARIANTS}. Choose some blocks or experts."
            )
        variants = []
        for block in blocks:
            variants += [Variant(changes=[Change(block=block, off=[expert])]) for expert in chosen[block]]
            variants += [Variant(changes=[Change(block=block, uniform=True)])] if parameters.uniform else []
    for variant in variants:
        for change in variant.changes:
            _check(model, change)
    return [v if v.name is not None else v.model_copy(update={"name": _name(v)}) for v in variants]


def _check(model: ServedModel, change: Change) -> None:
    if change.block != "all" and change.block not in model.routing_blocks:
        raise InvalidParameter(
            f"{model.name} has no CondConv block {change.block[:100]!r}; there are: {', '.join(model.routing_blocks)}, "
            "and all."
        )
    for block, experts in zip(model.routing_blocks, model.experts, strict=True):
        if change.block not in ("all", block):
            continue
        if wrong := [expert for expert in change.off or () if not 0 <= expert < experts]:
            raise InvalidParameter(f"{block} has the experts 0 to {experts - 1}, but no {wrong[0]}.")
        if change.weights is not None and len(change.weights) != experts:
            raise InvalidParameter(
                f"weights of {block} must be {experts}, one for each expert, not {len(change.weights)}."
            )


def _name(variant: Variant) -> str:
    return ", ".join(
        f"{change.block} uniform"
        if change.uniform
        else f"{change.block} with given weights"
        if change.weights is not None
        else f"{change.block} without expert {' and '.join(map(str, change.off or ()))}"
        for change in variant.changes
    )


def _overrides(model: ServedModel, variants: Sequence[Variant]) -> RoutingOverrides:
    shape = (len(variants), len(model.routing_blocks), model.num_experts)
    weights, uniform = np.full(shape, np.nan, np.float32), np.zeros(shape[:2], np.bool_)
    for number, variant in enumerate(variants):
        for change in variant.changes:
            chosen = range(shape[1]) if change.block == "all" else [model.routing_blocks.index(change.block)]
            for block in chosen:
                if change.uniform:
                    uniform[number, block], weights[number, block] = True, np.nan
                elif change.weights is not None:
                    given = [np.nan if weight is None else weight for weight in change.weights]
                    weights[number, block, : len(given)] = given
                else:
                    weights[number, block, change.off] = 0
    return RoutingOverrides(weights, uniform)


def _response(
    model: ServedModel,
    image: ImageSource,
    variants: Sequence[Variant],
    ablated: Ablated,
    *,
    routing: bool,
    timings: AblationTimingsBody,
) -> AblationResponse:
    logits, used = ablated.output.logits, ablated.output.routing
    (original,) = top_classes(logits[0], model, 1)
    bodies = []
    for variant, row, weights in zip(variants, logits[1:], used[1:], strict=True):
        (best,) = top_classes(row, model, 1)
        probability = float(softmax(row)[original.index])
        bodies.append(
            VariantBody(
                name=variant.name or "",
                changes=variant.changes,
                probability=probability,
                difference=probability - original.probability,
                top=ClassBody.model_validate(best, from_attributes=True),
                same_top=best.index == original.index,
                routing=routing_body(RoutingTrace(model.routing_blocks, weights, model.experts)) if routing else None,
            )
        )
    return AblationResponse(
        model=ModelReference(name=model.name, version=model.version),
        id=image.id if image.id is not None else "0",
        filename=image.filename,
        top=ClassBody.model_validate(original, from_attributes=True),
        routing=routing_body(RoutingTrace(model.routing_blocks, used[0], model.experts)),
        variants=bodies,
        timings_ms=timings,
    )
