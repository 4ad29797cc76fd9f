"""Who may use which route, and the headers that keep browsers from doing harm with an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request, Security
from fastapi.params import Depends as Dependency
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condconv_serve.errors import Forbidden, Unauthenticated
from condconv_serve.fronts.keys import ALL_SCOPES, KeyRing, KeyScope, RateLimits
from condconv_serve.fronts.native.problems import problem_responses

API_KEY_HEADER = "X-API-Key"  # pragma: allowlist secret
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
# What is in a picture is nobody else's business, so no cache on the way may keep it.
PRIVATE = ("/predict", "/routing")
EXPOSED = ("X-Request-Id", "Retry-After")

_api_key = APIKeyHeader(
    name=API_KEY_HEADER, scheme_name="ApiKey", auto_error=False, description="From `condconv keys new`."
)
_bearer = HTTPBearer(scheme_name="Bearer", auto_error=False, description="The same key in the `Authorization` header.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the service, and from where.

    Attributes:
        keys: the keys that are taken; None leaves everything open.
        cors_origins: origins whose pages may read the answers; `*` is any.
        serve_metrics: whether `/metrics` is here, rather than on a port of its own.
        open_admin: whether without keys what needs the scope `admin` is open, too.
    """

    keys: KeyRing | None = None
    cors_origins: Sequence[str] = ()
    serve_metrics: bool = True
    open_admin: bool = True


def guard(keys: KeyRing | None, *, open_admin: bool = True) -> Dependency:
    """What stands before every route that isn't for everybody: any key that may `predict`, within its rate.

    Routes for the few add `needs_admin`.
    """
    if keys is None:
        return Dependency(_open if open_admin else _open_to_predict)
    rates = RateLimits()

    async def check(
        request: Request,
        api_key: Annotated[str | None, Security(_api_key)],
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> None:
        # A proxy in front may want Authorization for itself, so ours comes first.
        secret = api_key or (bearer.credentials if bearer else None)
        if not secret:
            raise Unauthenticated(f"An API key is needed, as {API_KEY_HEADER} or as Authorization: Bearer.")
        key = keys.find(secret)
        request.scope["condconv.key_name"] = key.name
        request.scope["condconv.grants"] = key.grants
        _demand(request, "predict")
        rates.use(key)

    return Dependency(check)


async def _open(request: Request) -> None:
    request.scope["condconv.grants"] = ALL_SCOPES


async def _open_to_predict(request: Request) -> None:
    request.scope["condconv.grants"] = frozenset({"predict"})


async def _check_admin(request: Request) -> None:
    _demand(request, "admin")


needs_admin = Dependency(_check_admin)
"""For a route behind the guard that only keys with the scope `admin` may use; without a guard nobody may."""


def _demand(request: Request, scope: KeyScope) -> None:
    if scope not in request.scope.get("condconv.grants", ()):
        raise Forbidden(f"This needs an API key with the scope {scope}.")


def install(app: FastAPI, *, cors_origins: Sequence[str]) -> None:
    """Put the headers on every answer, and let pages of other origins read them if any may.

    Must come last: what is added later stands outside, and would answer without them.
    """
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=tuple(cors_origins),
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            # Harmless without credentials: a page can only send the key that it was given.
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    app.add_middleware(SecurityHeaders)


def document(openapi: dict[str, Any]) -> None:
    """Add to an OpenAPI document what guarded routes may answer besides; doing so again changes nothing."""
    refusals = problem_responses("unauthenticated", "forbidden", "rate_limited")
    for operations in openapi["paths"].values():
        for operation in operations.values():
            if "security" not in operation:
                continue
            for status, refusal in refusals.items():
                known = operation["responses"].setdefault(str(status), refusal)
                if refusal["description"] not in known["description"]:
                    known["description"] += f", {refusal['description']}"


class SecurityHeaders:
    """ASGI middleware: the headers of `HEADERS` on every answer, and no caching of those about somebody's images."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        await self._app(scope, receive, _with_headers(send, scope["path"]) if scope["type"] == "http" else send)


def _with_headers(send: Send, path: str) -> Callable[[Message], Awaitable[None]]:
    private = any(path == prefix or path.startswith(f"{prefix}/") for prefix in PRIVATE)

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            if private:
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers
