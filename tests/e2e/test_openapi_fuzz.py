"""Requests made up from the OpenAPI document, right ones and wrong ones: every answer is one that it announces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.server import MODEL, Server
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.workers import WORKERS


def no_server_error(context: CheckContext, response: Response, case: schemathesis.Case) -> None:
    """No 5xx, but for the 504 of whoever asked for an answer within so little time."""
    asked_for = response.status_code == 504 and "timeout" in f"{case.query} {case.body!r}"
    if not asked_for:
        not_a_server_error(context, response, case)


DETECTOR = "colours"
EXAMPLES = 6 if WORKERS == "1" else 10
"""Of each operation; more in `make test-workers`, which is run less often."""
CHECKS: list[Any] = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with a store of its own: made-up aliases and versions get into it."""
    store = tmp_path_factory.mktemp("store")
    for version in (1, 2):
        write_fake(store, MODEL, version)
    write_colour_detector(store, name=DETECTOR)
    with Server(model_store=store) as running:
        yield running


@pytest.mark.parametrize(
    ("document", "count"), [("/openapi.json", 23), ("/v1/openapi.json", 16), ("/v2/openapi.json", 18)]
)
def test_whatever_is_sent(server: Server, document: str, count: int) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}{document}", timeout=60)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) == count
    for operation in operations:
        strategy = st.one_of(
            operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
            operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
        )

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=strategy)
        def answers_as_documented(case: schemathesis.Case) -> None:
            if case.path == "/detect" and isinstance(case.query, dict):
                case.query.setdefault("model", DETECTOR)  # the default model is for something else
            case.call_and_validate(checks=CHECKS, timeout=60)

        answers_as_documented()


def test_a_model_whose_cost_cannot_be_counted(server: Server) -> None:
    body = server.client.get(f"/models/{MODEL}").json()
    assert "multiply_adds" not in body
    document = server.client.get("/openapi.json").json()
    assert set(document["components"]["schemas"]["ModelResponse"]["required"]) <= set(body)
