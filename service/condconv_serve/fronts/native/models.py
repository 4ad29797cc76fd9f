"""`/models`: which models and versions are served, and what keys with the scope `admin` may change."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.status import HTTP_204_NO_CONTENT

from condconv_serve.errors import ModelNotFound
from condconv_serve.fronts.context import AppContext
from condconv_serve.fronts.examples import EXAMPLE_MODEL
from condconv_serve.fronts.native.images import read_json
from condconv_serve.fronts.native.model_schemas import (
    AliasBody,
    AliasesResponse,
    AliasRequest,
    ModelResponse,
    ModelsResponse,
    ModelSummary,
    VersionBody,
    alias_body,
    model_response,
    model_summary,
    version_body,
)
from condconv_serve.fronts.native.problems import problem_responses
from condconv_serve.fronts.native.schemas import MAX_NAME, VERSION
from condconv_serve.fronts.security import needs_admin
from condconv_serve.serving.versions import VersionStatus

ModelPath = Annotated[str, Path(max_length=MAX_NAME, examples=[EXAMPLE_MODEL])]
VersionPath = Annotated[str, Path(max_length=MAX_NAME, examples=["1"])]
AliasPath = Annotated[str, Path(max_length=MAX_NAME, examples=["stable"])]
MAX_ALIAS_BYTES = 64 * 1024
"""Most bytes of a request that changes an alias."""

_NOT_FOUND = ("model_not_found", "version_not_found")
_CHANGING = (*_NOT_FOUND, "invalid_parameter", "invalid_bundle", "too_little_memory", "store_unavailable")

_ALIAS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": AliasRequest.model_json_schema(),
                "examples": {
                    "one version": {"value": {"version": "1"}},
                    "a split": {"value": {"versions": {"1": 90, "2": 10}}},
                    "a mirror": {"value": {"version": "1", "mirror": {"2": 10}}},
                },
            }
        },
    }
}


def router(context: AppContext) -> APIRouter:
    """The routes of models."""
    routes = APIRouter(tags=["models"])

    def summarise(name: str, statuses: list[VersionStatus]) -> ModelSummary:
        return model_summary(
            name,
            context.models.models().get(name, {}),
            default=name == context.models.default_model,
            statuses=statuses,
            aliases=context.models.aliases(name),
        )

    @routes.get("/models", summary="List the models", response_model=ModelsResponse, response_model_exclude_none=True)
    async def list_models() -> ModelsResponse:
        """All models of the store, with their versions and how each is doing."""
        statuses = await asyncio.to_thread(context.versions.status)
        return ModelsResponse(models=[summarise(name, found) for name, found in sorted(statuses.items())])

    @routes.get(
        "/models/{name}",
        summary="Describe a model",
        response_model=ModelResponse,
        response_model_exclude_none=True,
        responses=problem_responses(*_NOT_FOUND, "model_unavailable", "invalid_parameter"),
    )
    async def describe_model(
        name: ModelPath,
        version: Annotated[
            str | None,
            Query(max_length=MAX_NAME, description=VERSION),
        ] = None,
    ) -> ModelResponse:
        """Architecture, parameters, multiply-adds, preprocessing, checksums, measured accuracy and the model card.

        If an alias mirrors requests to another version, `shadows` says how its answers compare.
        """
        model = context.models.get(name, version)
        statuses = await asyncio.to_thread(context.versions.status)
        shadows = await context.shadows.read(model.name)
        return model_response(model, summarise(model.name, statuses.get(model.name, [])), shadows=shadows)

    @routes.post(
        "/models/{name}/versions/{version}/load",
        summary="Load a version",
        response_model=VersionBody,
        response_model_exclude_none=True,
        responses=problem_responses(*_CHANGING),
        dependencies=[needs_admin],
    )
    async def load(name: ModelPath, version: VersionPath) -> VersionBody:
        """Load a version from the store, warm it up, and serve it beside the others until it is unloaded.

        The answer comes when it serves, or has failed. A version that failed before is tried again. Only this replica
        loads it.
        """
        return version_body(await context.versions.load(name, version))

    @routes.post(
        "/models/{name}/versions/{version}/unload",
        summary="Unload a version",
        response_model=VersionBody,
        response_model_exclude_none=True,
        responses=problem_responses(*_NOT_FOUND, "invalid_parameter", "version_in_use", "store_unavailable"),
        dependencies=[needs_admin],
    )
    async def unload(name: ModelPath, version: VersionPath) -> VersionBody:
        """Stop serving a version.

        Its memory is released once its last request is answered. It stays unloaded until you load it or its files
        change. Only this replica unloads it.
        """
        return version_body(await context.versions.unload(name, version))

    @routes.get(
        "/models/{name}/aliases",
        summary="List a model's aliases",
        response_model=AliasesResponse,
        response_model_exclude_none=True,
        responses=problem_responses("model_not_found", "model_unavailable", "invalid_parameter"),
    )
    async def list_aliases(name: ModelPath) -> AliasesResponse:
        """The aliases that are in force."""
        aliases = context.models.aliases(name)
        if not aliases:
            context.models.get(name, None)
        if name not in context.models.models():
            raise ModelNotFound(f"Model {name!r} is not served.")
        return AliasesResponse(aliases={k: alias_body(v) for k, v in aliases.items()})

    @routes.put(
        "/models/{name}/aliases/{alias}",
        summary="Point an alias at versions",
        response_model=AliasBody,
        response_model_exclude_none=True,
        responses=problem_responses(
            *_CHANGING,
            "malformed_body",
            "body_too_large",
            "unsupported_body",
            "unsupported_encoding",
            "request_timeout",
            "draining",
            "store_not_writable",
        ),
        dependencies=[needs_admin],
        openapi_extra=_ALIAS_BODY,
    )
    async def set_alias(request: Request, name: ModelPath, alias: AliasPath) -> AliasBody:
        """Requests with the alias as their `version` get one of these versions, by weight.

        The header `X-Split-Key` decides which one: equal keys get equal versions. Without it the request's id decides.
        The versions in `mirror` get copies of that percentage of requests. How their answers compare is in
        `GET /models/{name}`; callers neither get them nor wait for them.
        Versions that aren't loaded are loaded first; if one can't be loaded, the alias stays as it was. The alias is
        kept in the store, so all replicas that share the store follow.
        """
        body = await read_json(request, AliasRequest, max_bytes=min(MAX_ALIAS_BYTES, context.limits.max_body_bytes))
        changed = await context.versions.set_alias(name, alias, body.split(), mirror=body.mirror or {})
        return alias_body(changed)

    @routes.post(
        "/models/{name}/aliases/{alias}/rollback",
        summary="Point an alias back",
        response_model=AliasBody,
        response_model_exclude_none=True,
        responses=problem_responses(*_CHANGING, "alias_not_found", "store_not_writable"),
        dependencies=[needs_admin],
    )
    async def roll_back(name: ModelPath, alias: AliasPath) -> AliasBody:
        """Point an alias back to where it pointed before its last change, and end its mirrors.

        A second rollback points it back again.
        """
        return alias_body(await context.versions.roll_back(name, alias))

    @routes.delete(
        "/models/{name}/aliases/{alias}",
        summary="Remove an alias",
        status_code=HTTP_204_NO_CONTENT,
        responses=problem_responses(
            "model_not_found", "alias_not_found", "invalid_parameter", "store_not_writable", "store_unavailable"
        ),
        dependencies=[needs_admin],
    )
    async def delete_alias(name: ModelPath, alias: AliasPath) -> None:
        """Remove an alias. Requests that still name it get 404."""
        await context.versions.delete_alias(name, alias)

    return routes
