"""What the OpenAPI document says of the response cache: all routes that answer images ask it, but for ablations."""

from __future__ import annotations

from typing import NoReturn

import pytest

from tests.unit.fronts.native.application import application


async def answer() -> NoReturn:
    raise AssertionError("Nothing is asked.")


OPENAPI = application(answer)[0].openapi()


@pytest.mark.parametrize(
    ("path", "cached", "kept"),
    [
        ("/predict", True, True),
        ("/detect", True, True),
        ("/routing", True, True),
        ("/features", True, False),
        ("/routing/ablation", False, False),
    ],
)
def test_headers_and_errors(path: str, *, cached: bool, kept: bool) -> None:
    operation = OPENAPI["paths"][path]["post"]
    headers = {each["name"]: each["description"] for each in operation["parameters"] if each["in"] == "header"}
    assert ("Cache-Control" in headers) is cached
    assert ("GET /routing/{request_id}" in headers["X-Request-Id"]) is kept
    assert ("not_cached" in operation["responses"]["504"]["description"]) is cached
