"""The client knows every route, parameter and field of the server's OpenAPI document, or this file says why not."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from typing import Any

import httpx
import pytest

from condconv_serve import AsyncClient, Client, ServiceError, results
from condconv_serve.client import LiveRouting, ModelDetails, ModelSummary, bodies, live, models
from condconv_serve.client.options import (
    DetectionAblationOptions,
    DetectOptions,
    FeaturesOptions,
    PredictOptions,
    RoutingOptions,
)
from condconv_serve.domain import Box
from tests.unit.fronts.native.application import application

LEFT_OUT = {
    "GET /livez": "for orchestrators; readiness says more",
    "GET /healthz": "the same as /readyz",
    "GET /metrics": "for Prometheus",
    "GET /routing/classes/{index}": "for the page",
    "GET /routing/experts/{block}/{expert}": "for the page",
    "GET /routing/state": "a file for `condconv routing-state`",
    "POST /routing/reset": "for operators",
}
"""Routes without a method, and why."""

CALLS: dict[str, tuple[Any, ...]] = {
    "predict": (b"x",),
    "routing": (b"x",),
    "detect": (b"x",),
    "features": (b"x",),
    "ablation": (b"x",),
    "detection_ablation": (b"x",),
    "recent_routing": ("request_id",),
    "live_routing": (),
    "models": (),
    "model": ("name",),
    "aliases": ("name",),
    "load_version": ("name", "version"),
    "unload_version": ("name", "version"),
    "set_alias": ("name", "alias", "1"),
    "roll_back_alias": ("name", "alias"),
    "delete_alias": ("name", "alias"),
    "ready": (),
}
"""Each method that asks something, with arguments whose names stand in the routes."""

NO_ROUTE_OF_THEIR_OWN = {
    "close",
    "detect_iter",
    "features_iter",
    "predict_iter",
    "routing_iter",
    "wait_until_ready",
}

PARAMETERS = {
    "POST /predict": (PredictOptions, {"timeout_ms"}),
    "POST /routing": (RoutingOptions, {"timeout_ms", "format"}),  # the forms other than JSON are for people
    "POST /detect": (DetectOptions, {"timeout_ms"}),
    "POST /features": (FeaturesOptions, {"timeout_ms", "format"}),  # the other forms tell less of what went wrong
    "POST /routing/ablation": (
        DetectionAblationOptions,
        {"timeout_ms", "blocks", "experts", "variants", "uniform", "routing"},
    ),
}
"""By route: the options that are its parameters, and those that have another shape."""

FIELDS: dict[str, tuple[Any, set[str]]] = {
    "ModelResponse": (ModelDetails, {"labels_count"}),  # the same as num_classes
    "ModelSummary": (ModelSummary, set()),
    "VersionBody": (models.VersionState, set()),
    "AliasBody": (models.AliasTarget, set()),
    "AliasesResponse": (models.Aliases, set()),
    "OutputBody": (models.OutputShape, set()),
    "LiveResponse": (LiveRouting, set()),
    "BlockBody": (live.LiveBlock, set()),
    "ExpertBody": (live.ExpertUse, set()),
    "DriftBody": (live.Drift, set()),
    "Spread": (live.Spread, set()),
    "CountedClass": (live.CountedClass, set()),
    "LiveClassesBody": (live.LiveClasses, set()),
    "ReferenceBody": (live.Reference, set()),
    "ReferenceBlockBody": (live.ReferenceBlock, set()),
    "InsightBody": (results.RoutingInsight, set()),
    "BlockInsightBody": (results.BlockInsight, set()),
    "ClassProfileBody": (results.ClassImages, set()),
    "Problem": (bodies.ProblemBody, {"type", "title"}),  # the error's class has these
    "RoutedPredictionBody": (bodies.PredictionBody, set()),
    "RoutedDetectionBody": (bodies.RoutedDetectionBody, set()),
    "DetectionBody": (bodies.DetectionBody, set()),
    "DetectedObjectBody": (bodies.ObjectBody, set()),
    "BoxBody": (Box, set()),
    "FeaturesBody": (bodies.FeaturesBody, set()),
    "RecentResponse": (bodies.RecentBody, {"at"}),
    "ClassBody": (bodies.ClassBody, set()),
    "TimingsBody": (bodies.TimingsBody, set()),
    "AblationResponse": (bodies.AblationBody, {"id", "filename"}),  # those of the caller
    "VariantBody": (bodies.VariantBody, set()),
    "ChangeBody": (bodies.ChangeBody, set()),
    "DetectionAblationResponse": (bodies.DetectionAblationBody, {"id", "filename"}),
    "DetectionVariantBody": (bodies.DetectionVariantBody, set()),
    "KeptObjectBody": (bodies.KeptObjectBody, set()),
    "LostObjectBody": (bodies.LostObjectBody, set()),
    "NewObjectBody": (bodies.NewObjectBody, set()),
    "ModelReference": (results.ModelVersion, set()),
}
"""By schema: what reads it, and which of its fields are left out."""


@functools.cache
def document() -> dict[str, Any]:
    async def nobody() -> Any:
        raise AssertionError("nothing is asked")

    return application(nobody)[0].openapi()


def routes() -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods}


def asked_for(name: str) -> str:
    """The route that a method asks, with its arguments' names in the places of the route's."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(f"{request.method} {request.url.path}")
        return httpx.Response(503, html="")

    asking = Client("http://server", retries=0, transport=httpx.MockTransport(answer))
    with asking as client, contextlib.suppress(ServiceError):
        getattr(client, name)(*CALLS[name])
    return seen[0]


def pattern(route: str) -> str:
    return route.replace("{", "").replace("}", "")


def test_every_route_has_a_method() -> None:
    asked = {asked_for(name) for name in CALLS}
    missing = {route for route in routes() - LEFT_OUT.keys() if pattern(route) not in asked}
    assert not missing, f"{', '.join(sorted(missing))}: give both clients a method, or say in LEFT_OUT why not"
    assert LEFT_OUT.keys() <= routes(), "LEFT_OUT names routes that there are"


def test_every_method_has_a_route() -> None:
    methods = {name for name in vars(Client) if not name.startswith("_")}
    assert methods == CALLS.keys() | NO_ROUTE_OF_THEIR_OWN
    known = {pattern(route) for route in routes()}
    assert {name: asked_for(name) for name in CALLS if asked_for(name) not in known} == {}


@pytest.mark.parametrize("route", PARAMETERS)
def test_every_parameter_is_an_option(route: str) -> None:
    options, others = PARAMETERS[route]
    method, path = route.split()
    operation = document()["paths"][path][method.lower()]
    parameters = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    own = {"timeout", "split_key", "no_cache", "on_error"}
    assert parameters == (options.__annotations__.keys() - own) | others


@pytest.mark.parametrize("schema", FIELDS)
def test_every_field_is_read(schema: str) -> None:
    kind, left_out = FIELDS[schema]
    described = document()["components"]["schemas"][schema]
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        needed = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
    else:
        fields = kind.model_fields
        needed = {name for name, field in fields.items() if field.is_required()}
    assert fields.keys() == described["properties"].keys() - left_out
    assert needed <= set(described.get("required", ())), "what the server may leave out isn't needed"


def test_both_clients_have_the_same_methods() -> None:
    def signatures(kind: type) -> dict[str, dict[str, Any]]:
        return {
            {"aclose": "close"}.get(name, name): {
                parameter.name: (parameter.kind, parameter.default)
                for parameter in inspect.signature(member).parameters.values()
            }
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert signatures(Client) == signatures(AsyncClient)
    for name in CALLS:
        assert inspect.getdoc(getattr(Client, name)) == inspect.getdoc(getattr(AsyncClient, name))
