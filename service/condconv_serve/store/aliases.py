"""Aliases of a model's versions, such as `stable` and `canary`: `<store>/<model>/aliases.json`.

An alias points at one version, or splits its traffic over several. It may also mirror a share of its requests to other
versions, whose answers nobody gets. It is kept in the store, so all replicas that share the store follow it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from condconv_serve.documents import read_document
from condconv_serve.domain.manifest import VersionName
from condconv_serve.errors import AliasNotFound, BundleError, InvalidParameter, StoreNotWritable
from condconv_serve.files import write_whole

ALIASES: Final = "aliases.json"
NO_MIRROR: Final[Mapping[str, int]] = MappingProxyType({})
DEFAULT_ALIAS: Final = "default"
"""If a model has an alias of this name, requests that name no version follow it."""

_LOCK = ".aliases.lock"

AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,63}$")]
"""Starts with a letter, so that no alias looks like a version."""
Weight = Annotated[int, Field(ge=1, le=1_000_000)]
Split = Annotated[dict[VersionName, Weight], Field(min_length=1, max_length=16)]
"""Versions with their relative weights."""
Percent = Annotated[int, Field(ge=1, le=100)]
MAX_MIRRORS: Final = 4
Mirror = Annotated[dict[VersionName, Percent], Field(max_length=MAX_MIRRORS)]
"""Versions with the percentage of requests that are copied to each."""

_split = TypeAdapter(Split)
_mirror = TypeAdapter(Mirror)
_alias_name = TypeAdapter(AliasName)


class Alias(BaseModel):
    """Where an alias points, where copies of its requests go, and where it pointed before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: Split = Field(description="Versions that it points at, with the relative weight of each.")
    mirror: Mirror = Field({}, description="Versions that get copies of requests, with the percentage for each.")
    previous: Split | None = Field(None, description="Where it pointed before; rolling back returns there.")

    def choose(self, key: str | None = None) -> str:
        """The version for a key, such as a request's id.

        A key always gets the same version, and each version gets keys by its weight. If the newest or the oldest
        version gets more weight, it keeps the keys that it had. Without a key it is the version with the most weight;
        of equals the newest.
        """
        if key is None:
            return max(self.versions, key=lambda version: (self.versions[version], int(version)))
        place = _place(key) * sum(self.versions.values())
        for version in sorted(self.versions, key=int):
            place -= self.versions[version]
            if place < 0:
                return version
        return max(self.versions, key=int)

    def mirrors(self, key: str) -> tuple[str, ...]:
        """The versions that get a copy of a request, by its key, as for `choose`.

        All requests of a key are copied or none, and each version gets keys by its percentage, whatever the split makes
        of them. A version that gets a larger percentage keeps the keys that it had.
        """
        return tuple(
            version for version, percent in self.mirror.items() if _place(f"mirror to {version}: {key}") * 100 < percent
        )


def _place(key: str) -> float:
    """A number from 0 to 1 that looks random, but is always the same for a key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    aliases: dict[AliasName, Alias] = {}


def read_aliases(store: Path, model: str) -> dict[str, Alias]:
    """All aliases of a model, by name; empty if it has none.

    Raises:
        BundleError: the file can't be read or is no such document.
    """
    return find_aliases(store, model) or {}


def find_aliases(store: Path, model: str) -> dict[str, Alias] | None:
    """All aliases of a model, by name; None if there is no file of them.

    Raises:
        BundleError: the file can't be read or is no such document.
    """
    document = read_document(store / model / ALIASES, _Document, name=f"{model}: {ALIASES}", error=BundleError)
    return None if document is None else document.aliases


def set_alias(
    store: Path, model: str, alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR
) -> Alias:
    """Point an alias at versions; it is made if it doesn't exist. What it mirrored before ends.

    Raises:
        InvalidParameter: the name, a version, a weight or a percentage is not allowed.
        BundleError: the present aliases are damaged.
        StoreNotWritable: nothing can be written there.
    """
    check_alias(alias, versions, mirror=mirror)
    with _changing(store, model) as aliases:
        previous = None
        if before := aliases.get(alias):
            previous = before.previous if before.versions == dict(versions) else before.versions
        aliases[alias] = Alias(versions=dict(versions), mirror=dict(mirror), previous=previous)
        return aliases[alias]


def restore_aliases(store: Path, model: str, aliases: Mapping[str, Alias]) -> None:
    """Write the aliases of a model whose file has gone; if it is there, nothing happens.

    Raises:
        StoreNotWritable: nothing can be written there.
    """
    if aliases and not (store / model / ALIASES).exists():
        with _changing(store, model) as stored:
            stored.update(aliases)


def check_alias(alias: str, versions: Mapping[str, int], *, mirror: Mapping[str, int] = NO_MIRROR) -> None:
    """Check an alias before it is set.

    Raises:
        InvalidParameter: the name, a version, a weight or a percentage is not allowed.
    """
    try:
        _alias_name.validate_python(alias)
    except ValidationError as error:
        raise InvalidParameter(
            f"An alias can't be called {alias!r}. It must start with a letter, and have up to 64 of a-z, 0-9, '.', '_' "
            "and '-'."
        ) from error
    try:
        _split.validate_python(dict(versions), strict=True)
    except ValidationError as error:
        raise InvalidParameter(
            "An alias points at 1 to 16 versions, each a whole number from 1, with weights from 1 to 1000000."
        ) from error
    try:
        _mirror.validate_python(dict(mirror), strict=True)
    except ValidationError as error:
        raise InvalidParameter(
            f"An alias mirrors to up to {MAX_MIRRORS} versions, each a whole number from 1, with percentages from 1 to "
            "100."
        ) from error
    if len(versions) == 1 and (same := set(versions) & set(mirror)):
        raise InvalidParameter(f"Version {same.pop()} would be mirrored to itself; mirror to another one.")


def roll_back(store: Path, model: str, alias: str) -> Alias:
    """Point an alias back to where it pointed before, and mirror nothing. A second rollback points it back again.

    Raises:
        AliasNotFound: there is no such alias; InvalidParameter: it has always pointed there.
        BundleError, StoreNotWritable: as for `set_alias`.
    """
    with _changing(store, model) as aliases:
        now = find_alias(aliases, model, alias)
        if now.previous is None:
            raise InvalidParameter(f"Alias {alias} of {model} never pointed anywhere else.")
        aliases[alias] = Alias(versions=now.previous, previous=now.versions)
        return aliases[alias]


def delete_alias(store: Path, model: str, alias: str) -> None:
    """Remove an alias.

    Raises:
        AliasNotFound: there is no such alias.
        BundleError, StoreNotWritable: as for `set_alias`.
    """
    with _changing(store, model) as aliases:
        find_alias(aliases, model, alias)
        del aliases[alias]


def mirrors_of(aliases: Mapping[str, Alias], version: str | None, key: str | None) -> tuple[str, ...]:
    """The versions that get a copy of a request.

    Args:
        aliases: of its model.
        version: that it names, which may be an alias; None if it names none.
        key: of the request, as for `Alias.choose`; without one nothing is copied.
    """
    alias = aliases.get(version or DEFAULT_ALIAS)
    return () if alias is None or key is None else alias.mirrors(key)


def find_alias(aliases: Mapping[str, Alias], model: str, alias: str) -> Alias:
    """Look an alias up.

    Raises:
        AliasNotFound: there is no such alias.
    """
    if alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise AliasNotFound(f"Model {model} has no alias {alias!r}; there are: {known}.")
    return aliases[alias]


@contextlib.contextmanager
def _changing(store: Path, model: str) -> Iterator[dict[str, Alias]]:
    """Read the aliases, let the caller change them, and write them, in one step. Other replicas wait meanwhile."""
    directory = store / model
    try:
        if not directory.is_dir():  # the lock would make it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        # The lock is a file, since NFS doesn't lock directories. Some releases of filelock leave it there, others
        # remove it. Both care for processes that wait, so it is never removed here.
        with FileLock(directory / _LOCK, poll_interval=0.01):
            aliases = read_aliases(store, model)
            yield aliases
            document = _Document(aliases=dict(sorted(aliases.items())))
            write_whole(directory / ALIASES, document.model_dump_json(indent=2) + "\n", alone=True)
    except OSError as error:
        raise StoreNotWritable(
            f"The aliases of {model} can't be written to the model store: {error.strerror or error}."
        ) from error
