"""Errors as problems: every one has a status, and none says more than it should."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest

from condconv_serve.domain import Classification
from condconv_serve.errors import InferenceFailed, QueueFull, ServiceError
from condconv_serve.fronts.native.problems import (
    STATUS,
    Problem,
    describe_validation,
    problem_response,
    problem_responses,
    render,
)
from condconv_serve.serving.readiness import Readiness
from tests.unit.fronts.native.application import application, connect


def every_error(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("error", list(every_error()))
def test_problem_of_every_error(error: type[ServiceError]) -> None:
    problem = Problem.of(error("What was wrong."))
    assert problem.type == f"urn:condconv-serve:problem:{error.slug}"
    assert problem.title == error.title
    assert problem.status == STATUS[error.slug]
    assert problem.detail == "What was wrong."
    assert problem.retry_after is None


@pytest.mark.parametrize(("seconds", "header"), [(None, None), (0.0, "1"), (0.01, "1"), (1.0, "1"), (1.2, "2")])
def test_retry_after_is_rounded_up_to_a_second_at_least(seconds: float | None, header: str | None) -> None:
    response = problem_response(Problem.of(QueueFull("Full.", retry_after=seconds)))
    assert response.headers.get("Retry-After") == header
    assert response.media_type == "application/problem+json"
    assert (b"retry_after" in response.body) is (seconds is not None)


def test_an_error_outside_of_any_application_looks_the_same() -> None:
    error = QueueFull("Full.", retry_after=1.2)
    answer, response = render(error), problem_response(Problem.of(error))
    assert (answer.status, answer.body) == (429, response.body)
    headers = dict(answer.headers)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"content-length"] == str(len(answer.body)).encode()
    assert headers[b"retry-after"] == b"2"


def test_documented_problems_are_grouped_by_status() -> None:
    documented = problem_responses("corrupt_image", "invalid_parameter", "queue_full")
    assert {status: entry["description"] for status, entry in documented.items()} == {
        422: "corrupt_image, invalid_parameter",
        429: "queue_full",
    }


def failure(*loc: str | int, msg: str = "Input should be wrong", kind: str = "x") -> dict[str, Any]:
    return {"loc": loc, "msg": msg, "type": kind}


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        ([failure("query", "top_k")], "top_k: Input should be wrong."),
        ([failure("body", "images", 0, "data")], "images.0.data: Input should be wrong."),
        ([failure()], "value: Input should be wrong."),
        ([failure("query", "a", kind="extra_forbidden")], "a: no such parameter."),
        ([failure("a", msg="Value error, too bad")], "a: too bad."),
        ([failure("a"), failure("b")], "a: Input should be wrong; b: Input should be wrong."),
        ([failure(n, msg="bad") for n in "abcdefg"], "a: bad; b: bad; c: bad; d: bad; e: bad and 2 more."),
        ([failure("k" * 1000, msg="bad")], "k" * 100 + ": bad."),
    ],
)
def test_describe_validation(errors: list[dict[str, Any]], sentence: str) -> None:
    assert describe_validation(errors) == sentence


def broken(reason: str | None, seconds: float) -> Readiness:
    """Loaded, but with something the matter with the engine, unless the reason is None."""
    readiness = Readiness(lambda: None if reason is None else (reason, seconds))
    readiness.loaded()
    return readiness


async def post(error: Exception, **options: Any) -> tuple[httpx.Response, dict[str, float]]:
    """Post an image to a service in which an error occurs; the response and the counters."""

    async def answer() -> Classification:
        raise error

    app, metrics = application(answer, **options)
    async with connect(app) as client:
        response = await client.post("/predict", content=b"image", headers={"X-Request-Id": "mine"})
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return response, {f"{s.name} {' '.join(filter(None, s.labels.values()))}": s.value for s in samples}


async def test_unexpected_exception_is_logged_and_counted_but_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="condconv_serve.access"):
        response, counters = await post(RuntimeError("the password is swordfish"))
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["slug"] == "internal_error"
    assert "swordfish" not in response.text
    assert counters["condconv_requests_total native /predict POST 500"] == 1
    assert counters["condconv_request_seconds_count native /predict"] == 1
    assert re.search(r"unexpected error in POST /predict \[mine\]", caplog.text)
    assert sum(record.name == "condconv_serve.access" for record in caplog.records) == 1, "a line for each request"
    assert "swordfish" in caplog.text


async def test_expected_error_is_told_and_counted_by_its_slug() -> None:
    response, counters = await post(InferenceFailed("The engine could not compute this image."))
    assert (response.status_code, response.json()["slug"]) == (500, "inference_failed")
    assert response.json()["detail"] == "The engine could not compute this image."
    assert counters["condconv_rejected_total inference_failed"] == 1


@pytest.mark.parametrize(("path", "status"), [("/nothing/", 404), ("/models/", 405)])
async def test_a_long_path_is_shortened(path: str, status: int) -> None:
    app, _ = application(AsyncMock())
    async with connect(app) as client:
        response = await client.delete(path + "x" * 8000)
    assert response.status_code == status
    assert path in response.json()["detail"]
    assert len(response.json()["detail"]) < 300


@pytest.mark.parametrize("content_type", ["application/json", "image/jpeg"])
async def test_an_encoding_that_is_not_read(content_type: str) -> None:
    app, _ = application(AsyncMock())
    async with connect(app) as client:
        headers = {"Content-Type": content_type, "Content-Encoding": "br"}
        response = await client.post("/predict", content=b"x", headers=headers)
    assert (response.status_code, response.json()["slug"]) == (415, "unsupported_encoding")
    assert response.json()["detail"] == "The content encoding 'br' can't be read; gzip and deflate can."
    assert response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("readiness", "detail"),
    [
        (Readiness(lambda: None), "The service is loading its models."),
        (broken("The engine has failed.", 4.2), "The engine has failed."),
    ],
)
async def test_while_not_ready_nothing_is_read(readiness: Readiness, detail: str) -> None:
    response, counters = await post(AssertionError("must not be reached"), readiness=readiness)
    assert (response.status_code, response.json()["slug"]) == (503, "not_ready")
    assert response.json()["detail"] == detail
    assert response.headers["Retry-After"] == "5"
    assert counters["condconv_rejected_total not_ready"] == 1


async def test_while_draining_requests_are_served_but_connections_end() -> None:
    readiness = broken(None, 0)
    readiness.drain()
    response, _ = await post(InferenceFailed("It came as far as this."), readiness=readiness)
    assert response.json()["detail"] == "It came as far as this."
    assert response.headers["Connection"] == "close"


async def test_strange_methods_and_paths_make_no_new_labels() -> None:
    async def answer() -> Classification:
        raise AssertionError("must not be reached")

    app, metrics = application(answer)
    async with connect(app) as client:
        for i in range(3):
            assert (await client.request(f"BREW{i}", f"/nowhere/{i}")).status_code == 404
    labels = {tuple(s.labels.values()) for family in metrics.requests.collect() for s in family.samples}
    assert labels == {("native", "unmatched", "other", "404", "")}
