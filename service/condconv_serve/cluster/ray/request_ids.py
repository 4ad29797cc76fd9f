"""Ray Serve's proxies put `X-Request-ID` on requests that lack it, and on all answers. Ours would stand there twice."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NAME = "X-Request-Id"


class OneRequestId:
    """Takes our own header off an answer if the proxy is going to put the same on it."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_NAME)

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get(_NAME) == given:
                    del headers[_NAME]
            await send(message)

        await self._app(scope, receive, send_once)
