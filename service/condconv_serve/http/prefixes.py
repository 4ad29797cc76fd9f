"""Beginnings of paths: several applications on one HTTP server, and the prefix under which a proxy shows them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from condconv_serve.errors import ConfigurationError
from condconv_serve.http.answer import ErrorRenderer
from condconv_serve.http.first_line import path_in
from condconv_serve.http.scope import path_of

Front = TypeVar("Front")


class ByPrefix:
    """ASGI application: gives each request to the front with the path's prefix, or else to the main front.

    Each front is complete: it has its own routes, its own `RequestContext`, and its own shape of errors, even for
    unknown paths. The main front also gets the server's start and stop events.
    """

    def __init__(self, main: ASGIApp, fronts: Mapping[str, ASGIApp]) -> None:
        """Take the fronts by prefix, such as `/v2`. A prefix matches whole segments of a path; the longest one wins."""
        self._main = main
        self._fronts = _longest_first(fronts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; the front sees the whole path."""
        await self._choose(scope)(scope, receive, send)

    def _choose(self, scope: Scope) -> ASGIApp:
        if scope["type"] != "http":
            return self._main
        return _below(path_of(scope), self._fronts, self._main)


class RenderersByPrefix:
    """Errors that no application can answer, in the shape of the front with the path's prefix, or else the main one."""

    def __init__(self, main: ErrorRenderer, fronts: Mapping[str, ErrorRenderer], *, root_path: str = "") -> None:
        """Take what the fronts make of errors, by prefix; all may be reached below `root_path`, too."""
        self._main = main
        self._fronts = _longest_first(fronts)
        self._root_path = root_path

    def __call__(self, target: bytes) -> ErrorRenderer:
        """Find what renders an error of a request with this target."""
        path = path_in(target)
        if self._root_path and path.startswith(f"{self._root_path}/"):
            path = path.removeprefix(self._root_path)
        return _below(path, self._fronts, self._main)


def _longest_first(fronts: Mapping[str, Front]) -> dict[str, Front]:
    return dict(sorted(fronts.items(), key=lambda item: -len(item[0])))


def _below(path: str, fronts: Mapping[str, Front], main: Front) -> Front:
    for prefix, front in fronts.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return front
    return main


class RootPath:
    """ASGI application: another one as it is reached under a prefix, whether or not a proxy takes the prefix off.

    The application sees what ASGI asks for: the prefix as `root_path`, and a `path` that begins with it. So all that it
    answers, and all that is logged, is the same whichever way a request came.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wrap an application; `root_path` looks like `/classify`."""
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other kinds of connections pass."""
        if scope["type"] == "http":
            scope = {**scope, "root_path": self._root_path, "path": self._whole(scope["path"])}
            if raw_path := scope.get("raw_path"):
                scope["raw_path"] = self._whole(raw_path.decode("latin-1")).encode("latin-1")
        await self._app(scope, receive, send)

    def _whole(self, path: str) -> str:
        if path == self._root_path:
            return f"{path}/"
        return path if path.startswith(f"{self._root_path}/") else self._root_path + path


def check_root_path(root_path: str, routes: Iterable[BaseRoute]) -> None:
    """Refuse a prefix that begins as a route does: whether a proxy has taken it off couldn't be told.

    Args:
        root_path: the prefix.
        routes: of the application.

    Raises:
        ConfigurationError: the prefix's first part is, or may be, the first part of a route.
    """
    first = "/" + root_path.split("/")[1]
    scopes = [{"type": "http", "method": "GET", "path": path} for path in (first, f"{first}/x")]
    if any(route.matches(scope)[0] is not Match.NONE for route in routes for scope in scopes):
        raise ConfigurationError(
            f"The root path {root_path} begins with {first}, a path of the server's own. Choose another prefix."
        )
