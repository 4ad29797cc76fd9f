"""Which versions of a model are to be served: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["available", "loading", "serving", "retiring", "failed"]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """How one version is doing.

    `available` lies in the store, but isn't loaded; `retiring` gets no new requests, but still answers old ones. A
    version can be `serving` and have a `reason` all the same: what lies in the store now could not be loaded, so the
    copy loaded before goes on.
    """

    version: str
    state: State
    reason: str | None = None


def wanted_versions(
    usable: Sequence[str], *, newest: int, aliased: Collection[str], pinned: Collection[str], unwanted: Collection[str]
) -> set[str]:
    """The versions that should be served.

    Args:
        usable: versions in the store that aren't known to be broken.
        newest: how many of the newest ones are served whatever else is.
        aliased: versions that an alias points at.
        pinned: versions that were loaded on request.
        unwanted: versions that were unloaded on request.
    """
    kept = [version for version in sorted(usable, key=int) if version not in unwanted]
    return {*kept[-newest:], *(set(usable) & (set(aliased) | set(pinned)))}


def versions_to_retire(serving: Collection[str], wanted: Collection[str], unwanted: Collection[str]) -> set[str]:
    """The served versions to let go of.

    A model's last version stays, although it is gone from the store: a directory that vanishes is more often a
    mishap than a wish. Only an unload on request ends it.
    """
    surplus = set(serving) - set(wanted)
    if set(serving) - surplus:
        return surplus
    kept = max(surplus - set(unwanted), key=int, default=None)
    return surplus - {kept}
