"""The slugs of errors, for fronts whose errors have none."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from condconv_serve.http.scope import facts_of

SLUG = "X-Test-Slug"
"""Name of the header that holds the slug of an error."""


def telling_slugs(app: ASGIApp) -> ASGIApp:
    """A front with the slugs of its requests' facts in a header of each answer."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slug(message: Message) -> None:
            if message["type"] == "http.response.start" and facts_of(scope).slug:
                MutableHeaders(scope=message)[SLUG] = str(facts_of(scope).slug)
            await send(message)

        await app(scope, receive, send_slug)

    return told
