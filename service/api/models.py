"""`GET /models` and `GET /models/{name}`: what is served, in full."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.api.parts import Parts
from service.api.problems import problem_responses
from service.api.schemas import MAX_NAME, ModelResponse, ModelsResponse, model_response, model_summary


def router(parts: Parts) -> APIRouter:
    """The routes of models."""
    routes = APIRouter(tags=["models"])

    @routes.get("/models", summary="List the served models", response_model=ModelsResponse)
    async def list_models() -> ModelsResponse:
        """All served models, with their versions; the default one is for requests that name none."""
        return ModelsResponse(
            models=[
                model_summary(name, versions, default=name == parts.models.default_model)
                for name, versions in sorted(parts.models.models().items())
            ]
        )

    @routes.get(
        "/models/{name}",
        summary="Describe a model",
        response_model=ModelResponse,
        response_model_exclude_none=True,
        responses=problem_responses("model_not_found", "version_not_found", "invalid_parameter"),
    )
    async def describe_model(
        name: Annotated[str, Path(max_length=MAX_NAME, examples=["efficientnet-lite0-condconv-4e"])],
        version: Annotated[str | None, Query(max_length=MAX_NAME, description="The newest if absent.")] = None,
    ) -> ModelResponse:
        """Architecture, parameters, multiply-adds, preprocessing, checksums, measured accuracy and the model card."""
        model = parts.models.get(name, version)
        return model_response(model, sorted(parts.models.models()[model.name], key=int))

    return routes
