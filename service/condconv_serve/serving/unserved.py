"""What of a model lies in the store but can't be answered now, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from condconv_serve.errors import ModelUnavailable
from condconv_serve.store.aliases import DEFAULT_ALIAS

LOADING_SECONDS = 5.0
BROKEN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A sentence for callers, without paths of the server, and the seconds after which a new try makes sense."""

    reason: str
    retry_after: float = BROKEN_SECONDS

    def error(self) -> ModelUnavailable:
        """What to raise for a request that meets it."""
        return ModelUnavailable(self.reason, retry_after=self.retry_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved:
    """What of a model can't be answered.

    Attributes:
        model: why requests that name no version can't be answered, nor those that name an alias.
        aliases: the aliases that are refused. If `default` is among them, so are requests that name no version.
        versions: the versions that lie in the store and are wanted, but aren't served.
    """

    model: Trouble | None = None
    aliases: Mapping[str, Trouble] = field(default_factory=dict)
    versions: Mapping[str, Trouble] = field(default_factory=dict)

    def of(self, version: str | None) -> Trouble | None:
        """Why a version or an alias that isn't served can't be answered; None if it isn't there at all."""
        if version is None:
            return self.aliases.get(DEFAULT_ALIAS) or self.model
        if found := self.versions.get(version) or self.aliases.get(version):
            return found
        return None if version.isdecimal() else self.model

    def trouble(self) -> Trouble | None:
        """The worst trouble; None if the model can be answered by every name but those of single versions."""
        return self.model or next(iter(self.aliases.values()), None)


def still_loading(name: str, versions: Collection[str]) -> Unserved:
    """A model that is new: nothing of it can be answered until its versions and aliases are known."""
    return Unserved(
        model=Trouble(f"Model {name} is still loading.", LOADING_SECONDS),
        versions={version: version_loading(name, version) for version in versions},
    )


def version_loading(name: str, version: str) -> Trouble:
    """A version that is being loaded, or copied into the store."""
    return Trouble(f"Version {version} of {name} is still loading.", LOADING_SECONDS)


def unreadable(name: str) -> Unserved:
    """A model whose directory can't be read."""
    return Unserved(model=Trouble(f"Model {name} can't be read in the model store."))
