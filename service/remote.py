"""What the command line asks of a running server."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from service.errors import RemoteFailed

_CONNECT_SECONDS = 10.0
_LOAD_SECONDS = 600.0


class RemoteService:
    """A server's routes for versions. Use as a context manager."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """Prepare to talk to a server.

        Args:
            url: where it listens, such as `http://127.0.0.1:8000`.
            api_key: one with the scope `admin`, if the server demands any.

        Raises:
            RemoteFailed: the address is none.
        """
        headers = {"X-API-Key": api_key} if api_key else {}
        timeout = httpx.Timeout(_LOAD_SECONDS, connect=_CONNECT_SECONDS)
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise RemoteFailed(f"{url!r} is no address of a server: {error}.") from error
        self._url = url

    def __enter__(self) -> RemoteService:
        """Keep connections."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connections."""
        self._client.close()

    def load(self, name: str, version: str) -> str:
        """Load a version; returns its state.

        Raises:
            RemoteFailed: the server says no, or can't be reached.
        """
        return str(self._ask("POST", "models", name, "versions", version, "load")["state"])

    def unload(self, name: str, version: str) -> str:
        """Unload a version; returns its state. Errors are those of `load`."""
        return str(self._ask("POST", "models", name, "versions", version, "unload")["state"])

    def aliases(self, name: str) -> dict[str, dict[str, int]]:
        """The versions of each alias with their weights. Errors are those of `load`."""
        return {k: v["versions"] for k, v in self._ask("GET", "models", name, "aliases")["aliases"].items()}

    def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> dict[str, int]:
        """Point an alias at versions. Errors are those of `load`."""
        answer = self._ask("PUT", "models", name, "aliases", alias, json={"versions": dict(versions)})
        return dict(answer["versions"])

    def roll_back(self, name: str, alias: str) -> dict[str, int]:
        """Point an alias back to where it pointed before. Errors are those of `load`."""
        return dict(self._ask("POST", "models", name, "aliases", alias, "rollback")["versions"])

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Errors are those of `load`."""
        self._ask("DELETE", "models", name, "aliases", alias)

    def _ask(self, method: str, *path: str, json: Any = None) -> Any:
        place = "/" + "/".join(quote(part, safe="") for part in path)
        try:
            response = self._client.request(method, place, json=json)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise RemoteFailed(f"The server at {self._url} can't be reached: {reason}.") from error
        try:
            document = response.json() if response.content else None
        except ValueError:
            document = None
        if response.is_success:
            return document
        detail = document.get("detail") if isinstance(document, dict) else None
        raise RemoteFailed(
            detail or f"The server at {self._url} answered {response.status_code}, which is none of ours."
        )
