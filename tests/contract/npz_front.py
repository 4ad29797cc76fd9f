"""A whole front in sixty lines: rows as NPZ in, named tensors as NPZ out. What all fronts share comes from outside."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from condconv_serve.errors import InvalidParameter, MalformedBody, ServiceError, let_go
from condconv_serve.fronts.gatekeeper import API_KEY_HEADER, SPLIT_KEY_HEADER, Gatekeeper
from condconv_serve.http.answer import Answer
from condconv_serve.http.body import read_body
from condconv_serve.http.disconnect import unless_disconnected
from condconv_serve.http.middleware import RequestContext
from condconv_serve.http.scope import facts_of
from condconv_serve.pipeline import Plane
from condconv_serve.telemetry.metrics import Metrics

STATUS = {"unauthenticated": 401, "forbidden": 403, "rate_limited": 429, "not_ready": 503, "deadline_exceeded": 504}


def render(error: ServiceError) -> Answer:
    """An error of this protocol is its slug and its message, on a line."""
    return Answer(STATUS.get(error.slug, 400), [(b"content-type", b"text/plain")], f"{error.slug}: {error}".encode())


def npz_front(gatekeeper: Gatekeeper, plane: Plane, metrics: Metrics, *, max_body_bytes: int) -> ASGIApp:
    async def infer(request: Request) -> Response:
        facts, query = facts_of(request.scope), request.query_params
        await gatekeeper.admit(facts, secret=request.headers.get(API_KEY_HEADER))
        gatekeeper.check_ready()
        facts.deadline = gatekeeper.deadline(int(query["timeout_ms"]) if "timeout_ms" in query else None)
        priority = gatekeeper.priority(query.get("priority", "normal"))
        split_key = gatekeeper.split_key(facts, request.headers.get(SPLIT_KEY_HEADER))
        await plane.check(query.get("model"), split_key=split_key, priority=priority, deadline=facts.deadline)
        try:
            rows = np.load(io.BytesIO(await read_body(request, max_body_bytes)))["rows"]
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise MalformedBody("The body is no NPZ file with an array called rows.") from error
        with plane.lease(query.get("model"), split_key=split_key) as model:
            facts.model, facts.rows = f"{model.name}/{model.version}", len(rows)
            work = plane.infer(model, rows, priority=priority, deadline=facts.deadline)
            tensors = await unless_disconnected(request, work)
        np.savez(packed := io.BytesIO(), **tensors)  # type: ignore[arg-type] # a name could be allow_pickle
        return Response(packed.getvalue(), media_type="application/octet-stream")

    async def failed(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, ServiceError) else InvalidParameter(str(error))
        facts_of(request.scope).slug, answer = let_go(known).slug, render(known)
        return Response(answer.body, answer.status, media_type="text/plain")

    app = FastAPI(openapi_url=None, exception_handlers={ServiceError: failed, ValueError: failed})
    app.add_api_route("/npz", infer, methods=["POST"])
    return RequestContext(app, front="npz", render=render, metrics=metrics)
