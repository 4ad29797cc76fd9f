"""What the errors of REST fronts share, whatever their bodies look like."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.routing import Match

from condconv_serve.errors import CapacityError, ServiceError, let_go
from condconv_serve.http.encodings import ENCODINGS
from condconv_serve.http.scope import facts_of, root_path_of

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SHOWN = 200
"""Most characters of a path in a message."""
_TITLES = {"not_found": "Not found", "method_not_allowed": "Method not allowed", "http_error": "HTTP error"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrouted:
    """A request that no route takes: why, and headers that go with the answer."""

    status: int
    slug: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The kind of error, in words."""
        return _TITLES[self.slug]


def headers_of(slug: str, retry_after: float | None) -> dict[str, str]:
    """Headers that go with an error: how to say who asks or to compress, and when (seconds) a new try makes sense."""
    headers = {}
    if slug == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    elif slug == "unsupported_encoding":
        headers["Accept-Encoding"] = ", ".join(ENCODINGS)
    return headers if retry_after is None else headers | {"Retry-After": str(max(math.ceil(retry_after), 1))}


def documented(
    slugs: Sequence[str], status: Mapping[str, int], *, content: Mapping[str, Any]
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route may answer with.

    Args:
        slugs: of the errors.
        status: the front's status codes by slug.
        content: what OpenAPI says of the body of every error.
    """
    by_status: dict[int | str, list[str]] = {}
    for slug in slugs:
        by_status.setdefault(status[slug], []).append(slug)
    return {code: {"description": ", ".join(names), "content": content} for code, names in by_status.items()}


def note_error(request: Request, error: ServiceError, *, status: int) -> None:
    """Tell facts and log of an error that is about to be answered with a status. It lets go of the request."""
    if status >= 500 and not isinstance(error, CapacityError):
        logger.error("%s %s: %s", request.method, request.url.path, error)
    facts_of(request.scope).slug = let_go(error).slug


def unrouted(request: Request, error: HTTPException, *, docs: str) -> Unrouted:
    """Describe Starlette's error, and tell the facts of it.

    Args:
        request: no route takes it.
        error: Starlette's.
        docs: path of the page or document that lists the routes.
    """
    slug = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    facts_of(request.scope).slug = slug
    detail, headers = str(error.detail), dict(error.headers or {})
    path, method = request.url.path[:_SHOWN], request.method[:_SHOWN]
    if error.status_code == 404:
        detail = f"There is nothing at {path}; {root_path_of(request.scope)}{docs} lists what there is."
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
        detail = f"{path} doesn't take {method}; it takes {headers['Allow']}."
    return Unrouted(status=error.status_code, slug=slug, detail=detail, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of a path; the router names those of the first route only."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if is_taken(method)]
