"""The command line's requests to a running server."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, PositiveInt, TypeAdapter, ValidationError

from condconv_serve.errors import RemoteFailed

Answer = TypeVar("Answer")
_Versions = Annotated[dict[str, PositiveInt], Field(min_length=1)]


class _State(BaseModel):
    state: str


class _Alias(BaseModel):
    versions: _Versions


class _Aliases(BaseModel):
    aliases: dict[str, _Alias]


class _Problem(BaseModel):
    detail: str


_CONNECT_SECONDS = 10.0
_LOAD_SECONDS = 600.0


class RemoteService:
    """A server's routes for versions. Use as a context manager."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """Prepare to talk to a server.

        Args:
            url: where it listens, such as `http://127.0.0.1:8000`.
            api_key: a key with the scope `admin`, if the server needs keys.

        Raises:
            RemoteFailed: the address is not a URL, or the key can't be a key.
        """
        api_key = (api_key or "").strip()
        if not (api_key.isascii() and api_key.isprintable()):
            raise RemoteFailed("The API key holds characters that no key has.")
        headers = {"X-API-Key": api_key} if api_key else {}
        timeout = httpx.Timeout(_LOAD_SECONDS, connect=_CONNECT_SECONDS)
        try:
            self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise RemoteFailed(f"{url!r} is not the address of a server: {error}.") from error
        self._url = self._client.base_url.copy_with(userinfo=b"")  # messages must not show a password

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
        return self._ask(_State, "POST", "models", name, "versions", version, "load").state

    def unload(self, name: str, version: str) -> str:
        """Unload a version; returns its state. Errors are those of `load`."""
        return self._ask(_State, "POST", "models", name, "versions", version, "unload").state

    def aliases(self, name: str) -> dict[str, dict[str, int]]:
        """The versions of each alias with their weights. Errors are those of `load`."""
        found = self._ask(_Aliases, "GET", "models", name, "aliases").aliases
        return {alias: to.versions for alias, to in found.items()}

    def set_alias(self, name: str, alias: str, versions: Mapping[str, int]) -> dict[str, int]:
        """Point an alias at versions. Errors are those of `load`."""
        given = {"versions": dict(versions)}
        return self._ask(_Alias, "PUT", "models", name, "aliases", alias, json=given).versions

    def roll_back(self, name: str, alias: str) -> dict[str, int]:
        """Point an alias back to where it pointed before. Errors are those of `load`."""
        return self._ask(_Alias, "POST", "models", name, "aliases", alias, "rollback").versions

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Errors are those of `load`."""
        self._ask(type(None), "DELETE", "models", name, "aliases", alias)

    def _ask(self, kind: type[Answer], method: str, *path: str, json: Any = None) -> Answer:
        place = "/" + "/".join(quote(part, safe="", errors="surrogateescape") for part in path)
        try:
            response = self._client.request(method, place, json=json)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise RemoteFailed(f"The server at {self._url} can't be reached: {reason}.") from error
        foreign = RemoteFailed(
            f"The server at {self._url} answered {response.status_code}, but this is no answer of condconv-serve."
        )
        try:
            if response.is_success:
                return TypeAdapter(kind).validate_json(response.content or b"null", strict=True)
            problem = _Problem.model_validate_json(response.content)
        except ValidationError as error:
            raise foreign from error
        raise RemoteFailed(problem.detail)
