"""API keys: made, stored, read from a file that may change, and found by their secret.

A secret is 32 random bytes, so one round of SHA-256 is enough to store it: there is nothing to guess that a slow hash
would protect.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from condconv_serve.domain.facts import KeyScope
from condconv_serve.errors import ConfigurationError, Unauthenticated
from condconv_serve.validation import describe_errors

logger = logging.getLogger(__name__)

SECRET_PREFIX = "condconv_"  # pragma: allowlist secret
"""Lets scanners recognise a secret that ended up in a repository or a log."""
SECONDS_BETWEEN_LOOKS = 1.0

ALL_SCOPES: frozenset[KeyScope] = frozenset({"predict", "admin"})


class ApiKey(BaseModel):
    """One key as it is stored: everything but its secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    scopes: tuple[KeyScope, ...]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @property
    def grants(self) -> frozenset[KeyScope]:
        """What the key may do. `admin` includes the rest; a key without scopes is suspended."""
        return ALL_SCOPES if "admin" in self.scopes else frozenset(self.scopes)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    # Without keys everything is open, so an empty file must not count as no keys.
    keys: tuple[ApiKey, ...] = Field(min_length=1)

    @field_validator("keys")
    @classmethod
    def _unlike(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for what, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return keys


def new_key(
    name: str, *, scopes: Sequence[str] = ("predict",), requests_per_minute: int | None = None
) -> tuple[str, ApiKey]:
    """Make a key.

    Returns:
        The secret, which is stored nowhere, and the entry to store.

    Raises:
        ConfigurationError: an impossible name, scope or limit.
    """
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    try:
        key = ApiKey.model_validate(
            {
                "name": name,
                "scopes": tuple(dict.fromkeys(scopes)),
                "sha256": sha256(secret.encode()).hexdigest(),
                "requests_per_minute": requests_per_minute,
            }
        )
    except ValidationError as error:
        raise ConfigurationError(f"The key can't be made: {_describe(error)}.") from error
    return secret, key


def parse_keys(text: str | bytes) -> tuple[ApiKey, ...]:
    """Read keys from JSON: `{"keys": [{"name": "ci", "scopes": ["predict"], "sha256": "..."}]}`.

    Raises:
        ConfigurationError: it isn't JSON, holds no keys, or one that is incomplete or wrong. The message repeats no
            values: somebody may have put a secret in the place of its hash.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError("The API keys are not valid JSON.") from error
    try:
        return _Document.model_validate(document).keys
    except ValidationError as error:
        raise ConfigurationError(f"The API keys are not valid: {_describe(error)}.") from error


def write_keys(keys: Sequence[ApiKey]) -> str:
    """Keys as the JSON that `parse_keys` reads."""
    return json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2) + "\n"


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read keys from a file.

    Raises:
        ConfigurationError: it can't be read, or `parse_keys` refuses it.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"The API keys file {path} can't be read: {error.strerror}.") from error
    return parse_keys(text)


class KeyRing:
    """The API keys in force; at least one.

    Keys from a file follow the file: it is read again when it changes. If the new file can't be used, the old keys stay
    in force.
    """

    def __init__(
        self, keys: Sequence[ApiKey], *, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Hold `keys`; with `file`, replace them when it changes. `from_file` reads it for the first time."""
        self._keys = _with_digests(keys)
        self._file = file
        self._clock = clock
        self._looked = clock()
        self._state: tuple[int, ...] | None = None

    @classmethod
    def from_file(cls, file: Path, *, clock: Callable[[], float] = time.monotonic) -> KeyRing:
        """Read a file, and follow its changes.

        Raises:
            ConfigurationError: the file is unusable.
        """
        state = _state_of(file)  # before reading, as below
        ring = cls(read_keys(file), file=file, clock=clock)
        ring._state = state
        return ring

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        """The keys."""
        return iter(key for _, key in self._keys)

    def find(self, secret: str) -> ApiKey:
        """Find the key of a secret. How long it takes tells nothing about the keys.

        Raises:
            Unauthenticated: no key has this secret.
        """
        self._follow_file()
        digest = sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for stored, key in self._keys:  # all of them, whichever fits
            if hmac.compare_digest(stored, digest):
                found = key
        if found is None:
            raise Unauthenticated("This API key is unknown.")
        return found

    def read_again(self) -> None:
        """Read the file again, changed or not; without one, nothing happens."""
        if self._file is None:
            return
        self._looked = self._clock()
        self._state = _state_of(self._file)  # before reading, so that a write in the meantime counts as a change
        try:
            self._keys = _with_digests(read_keys(self._file))
        except ConfigurationError as error:
            logger.error("the changed API keys are not used, the %d old ones stay in force: %s", len(self), error)
        else:
            logger.info("%d API keys read again: %s", len(self), ", ".join(key.name for key in self))

    def _follow_file(self) -> None:
        if self._file is None or self._clock() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = self._clock()
        if _state_of(self._file) != self._state:
            self.read_again()


def _with_digests(keys: Sequence[ApiKey]) -> tuple[tuple[bytes, ApiKey], ...]:
    return tuple((bytes.fromhex(key.sha256), key) for key in keys)


def _state_of(file: Path) -> tuple[int, ...] | None:
    """Changes when the file is written or replaced; None if the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _describe(error: ValidationError) -> str:
    return describe_errors(error, most=3, whole="the document", hide_unknown=True)
