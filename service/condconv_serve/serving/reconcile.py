"""Decides how to get from the versions that are served to the versions that the store and the operator want.

A pure function: frozen values in, actions out; no clock, no disk, no threads. `StoreFollower` carries the actions out
and asks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from condconv_serve.serving.fingerprint import Fingerprint
from condconv_serve.store.aliases import Alias


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the store holds of one model: its versions with their files, and its aliases."""

    versions: Mapping[str, Fingerprint] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVersions:
    """What is served of one model, and what was tried.

    Attributes:
        versions: the served versions, each with its files as they were when it was loaded.
        failed: the versions that could not be loaded, each with its files as they were then. A version can be in both:
            its files changed, the new ones failed, and the old copy is still served.
        aliases: those in force.
        settled: the versions that were waited for in this round, each with its files if they stayed the same; None if
            they changed.
    """

    versions: Mapping[str, Fingerprint] = field(default_factory=dict)
    failed: Mapping[str, Fingerprint] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    settled: Mapping[str, Fingerprint | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator wants of one model.

    Attributes:
        newest: how many of the newest versions are served in any case.
        pinned: versions to serve because somebody asked for them.
        unwanted: versions that somebody unloaded, each with its files at that time.
        may_load: False while the service ends: served versions stay, and nothing more is loaded.
    """

    newest: int
    pinned: Collection[str] = ()
    unwanted: Mapping[str, Fingerprint] = field(default_factory=dict)
    may_load: bool = True


@dataclass(frozen=True, slots=True)
class Forgive:
    """Forget that a version failed: its files have changed, so it gets another chance."""

    version: str


@dataclass(frozen=True, slots=True)
class WantAgain:
    """Forget that somebody unloaded a version: its files have changed since."""

    version: str


@dataclass(frozen=True, slots=True)
class WaitToSettle:
    """Wait a moment, and look whether these files stay the same: somebody may still be copying them."""

    version: str
    files: Fingerprint


@dataclass(frozen=True, slots=True)
class Load:
    """Load a version; its files have settled."""

    version: str
    files: Fingerprint


@dataclass(frozen=True, slots=True)
class SetAliases:
    """Put these aliases in force. `broken` aliases point at versions that can't be served, so they don't change."""

    aliases: Mapping[str, Alias]
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retire:
    """Stop serving a version."""

    version: str


Action: TypeAlias = Forgive | WantAgain | WaitToSettle | Load | SetAliases | Retire


def followed_models(stored: Collection[str], served: Collection[str]) -> list[str]:
    """Names of the models to reconcile: all in the store and all that are served."""
    return sorted({*stored, *served})


def reconcile(stored: Stored, served: ServedVersions, wishes: Wishes) -> tuple[Action, ...]:
    """The next actions for one model, in order.

    `Forgive` and `WantAgain` come first. If a version must be loaded, one step towards that follows, for the newest
    version first: `WaitToSettle` or `Load`. It is the last action, since everything else depends on its result: carry
    it out and ask again. `SetAliases` is among the actions exactly if there is no such step.
    """
    forgiven, wanted_again = _changed(served.failed, stored), _changed(wishes.unwanted, stored)
    failed, unwanted = set(served.failed) - set(forgiven), set(wishes.unwanted) - set(wanted_again)
    chances: tuple[Action, ...] = (*map(Forgive, forgiven), *map(WantAgain, wanted_again))
    aliased = {version for alias in stored.aliases.values() for version in alias.versions}
    mirrored = {version for alias in stored.aliases.values() for version in alias.mirror}
    usable = [v for v in sorted(stored.versions, key=int) if v not in failed or v in served.versions]
    newest = [version for version in usable if version not in unwanted][-wishes.newest :]
    needed = {*newest, *(set(usable) & {*aliased, *wishes.pinned})}
    # Nobody waits for answers of the others, so they come last, and whoever unloads one gets rid of it.
    wanted = needed | (set(usable) & mirrored - unwanted)

    if wishes.may_load:
        for candidates in (needed - failed, wanted - needed - failed):
            if step := _next_to_load(candidates, stored, served):
                return (*chances, step)

    aliases = _aliases_in_force(stored, served)
    held = {version for alias in aliases.aliases.values() for version in alias.versions}
    retired = _surplus(set(served.versions), wanted | held, unwanted)
    return (*chances, aliases, *(Retire(version) for version in sorted(retired, key=int)))


def _changed(before: Mapping[str, Fingerprint], stored: Stored) -> list[str]:
    """The versions in the store whose files are not what they were."""
    return sorted((v for v, files in before.items() if stored.versions.get(v, files) != files), key=int)


def _next_to_load(candidates: set[str], stored: Stored, served: ServedVersions) -> Load | WaitToSettle | None:
    """The newest version that is not served as it lies in the store; None if there is none that may settle now."""
    for version in sorted(candidates, key=int, reverse=True):
        files = stored.versions[version]
        if served.versions.get(version) == files:
            continue
        if version not in served.settled:
            return WaitToSettle(version, files)
        settled = served.settled[version]
        if settled == files:
            return Load(version, files)
        if settled is not None:  # settled, and changed again after that
            return WaitToSettle(version, files)
        # It is still changing. The last change will start another round.
    return None


def _aliases_in_force(stored: Stored, served: ServedVersions) -> SetAliases:
    """The store's aliases. An alias that can't be served stays where it was, rather than pointing nowhere."""
    aliases, broken = {}, []
    for name, alias in stored.aliases.items():
        if set(alias.versions) <= set(served.versions):
            aliases[name] = alias
            continue
        broken.append(name)
        before = served.aliases.get(name)
        if before is not None and set(before.versions) <= set(served.versions):
            aliases[name] = before
    return SetAliases(aliases, tuple(broken))


def _surplus(served: set[str], wanted: set[str], unwanted: set[str]) -> set[str]:
    """The served versions to retire.

    A model's last version stays even if it is gone from the store: a directory that vanishes is more often an accident
    than a wish. It ends only if somebody unloads it.
    """
    surplus = served - wanted
    if served - surplus:
        return surplus
    return surplus - {max(surplus - unwanted, key=int, default=None)}
