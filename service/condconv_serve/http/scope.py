"""What we read from an ASGI scope, and the one place that keeps a request's facts in it."""

from __future__ import annotations

from starlette.types import Scope

from condconv_serve.domain.facts import RequestFacts

REQUEST_ID_HEADER = "X-Request-Id"

_KEY = "condconv_serve.facts"


def path_of(scope: Scope) -> str:
    """The path of a request, without the prefix under which the whole server is reached."""
    path: str = scope["path"]
    return path.removeprefix(root_path_of(scope))


def root_path_of(scope: Scope) -> str:
    """The prefix under which the whole server is reached, such as `/classify`; empty without one."""
    root_path: str = scope.get("root_path", "")
    return root_path


def keep_facts(scope: Scope, facts: RequestFacts) -> None:
    """Keep the facts of a request. The middleware calls this before any application sees the request."""
    scope[_KEY] = facts


def facts_of(scope: Scope) -> RequestFacts:
    """The facts of a request.

    Raises:
        KeyError: the application runs without the middleware `RequestContext`.
    """
    facts: RequestFacts = scope[_KEY]
    return facts
