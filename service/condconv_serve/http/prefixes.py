"""Several applications on one HTTP server, told apart by the beginning of the path."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from condconv_serve.http.scope import path_of


class ByPrefix:
    """ASGI application: gives each request to the front with the path's prefix, or else to the main front.

    Each front is complete: it has its own routes, its own `RequestContext`, and its own shape of errors, even for
    unknown paths. The main front also gets the server's start and stop events.
    """

    def __init__(self, main: ASGIApp, fronts: Mapping[str, ASGIApp]) -> None:
        """Take the fronts by prefix, such as `/v2`. A prefix matches whole segments of a path; the longest one wins."""
        self._main = main
        self._fronts = sorted(fronts.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; the front sees the whole path."""
        await self._choose(scope)(scope, receive, send)

    def _choose(self, scope: Scope) -> ASGIApp:
        if scope["type"] != "http":
            return self._main
        path = path_of(scope)
        for prefix, front in self._fronts:
            if path == prefix or path.startswith(f"{prefix}/"):
                return front
        return self._main
