"""Who may use which route of a REST front, and headers that keep browsers from misusing an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condconv_serve.fronts.gatekeeper import API_KEY_HEADER, Gatekeeper, demand
from condconv_serve.http.cache_control import CACHE_STATUS_HEADER
from condconv_serve.http.scope import REQUEST_ID_HEADER, facts_of, path_of

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
REFUSALS = ("unauthenticated", "forbidden", "rate_limited")
"""Slugs of what the guard may answer."""
EXPOSED = (REQUEST_ID_HEADER, "Retry-After", CACHE_STATUS_HEADER)
"""Headers that pages of other origins may read, of every front."""

_api_key = APIKeyHeader(
    name=API_KEY_HEADER, scheme_name="ApiKey", auto_error=False, description="From `condconv keys new`."
)
_bearer = HTTPBearer(scheme_name="Bearer", auto_error=False, description="The same key in the `Authorization` header.")


def guard(gatekeeper: Gatekeeper) -> Dependency:
    """Put this before every route that isn't for everybody. Routes for admins add `needs_admin`."""

    async def open_to_all(request: Request) -> None:
        await gatekeeper.admit(facts_of(request.scope), secret=None)

    async def check(
        request: Request,
        api_key: Annotated[str | None, Security(_api_key)],
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> None:
        # A proxy in front may want Authorization for itself, so ours comes first.
        secret = api_key or (bearer.credentials if bearer else None)
        await gatekeeper.admit(facts_of(request.scope), secret=secret)

    # Only the second one puts the keys into the OpenAPI document.
    return Dependency(check if gatekeeper.asks_for_keys else open_to_all)


async def _check_admin(request: Request) -> None:
    demand(facts_of(request.scope), "admin")


needs_admin = Dependency(_check_admin)
"""For a route behind the guard that needs the scope `admin`. Without the guard nobody may use it."""


def install(
    app: FastAPI, *, cors_origins: Sequence[str], private: Sequence[str] = (), exposed: Sequence[str] = ()
) -> None:
    """Put the headers on every answer, and let pages of other origins read it if they may.

    Call this last: middleware that is added later answers without the headers.

    Args:
        app: a front.
        cors_origins: origins whose pages may read the answers; `*` is any.
        private: beginnings of paths, in whole segments, whose answers are about pictures: no cache on the way may keep
            them.
        exposed: headers of the front's own that pages of other origins may read.
    """
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=tuple(cors_origins),
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            # Harmless without credentials: a page can only send the key that it was given.
            allow_headers=("*",),
            expose_headers=(*EXPOSED, *exposed),
        )
    app.add_middleware(SecurityHeaders, private=private)


def document(openapi: dict[str, Any], refusals: Mapping[int | str, dict[str, Any]]) -> None:
    """Add to a new OpenAPI document what the guard may answer.

    Args:
        openapi: the document.
        refusals: entries by status for the errors of `REFUSALS`.
    """
    for operations in openapi["paths"].values():
        for operation in operations.values():
            if "security" not in operation:
                continue
            for status, refusal in refusals.items():
                if known := operation["responses"].get(str(status)):
                    known["description"] += f", {refusal['description']}"
                else:
                    operation["responses"][str(status)] = refusal


class SecurityHeaders:
    """ASGI middleware: puts `HEADERS` on every answer, and forbids caching of answers about images."""

    def __init__(self, app: ASGIApp, *, private: Sequence[str] = ()) -> None:
        """Wrap an app; answers under the paths `private` may be kept by nobody."""
        self._app = app
        self._private = private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        private = any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._private)
        await self._app(scope, receive, _with_headers(send, private=private))


def _with_headers(send: Send, *, private: bool) -> Callable[[Message], Awaitable[None]]:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            if private:
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers
