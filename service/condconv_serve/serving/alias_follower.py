"""Follows the aliases of models, and refuses requests rather than answer them with a version that nobody chose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from condconv_serve.errors import BundleError
from condconv_serve.serving.registry import Registry
from condconv_serve.serving.store_health import StoreHealth
from condconv_serve.serving.unserved import Trouble, Unserved
from condconv_serve.store.aliases import ALIASES, DEFAULT_ALIAS, Alias, find_aliases

_KEPT = "as they were, but not after a restart."


@dataclass(frozen=True, slots=True)
class ReadAliases:
    """A model's aliases to follow.

    `problem` says why they aren't those of the store. `known` is False if nobody knows them.
    """

    aliases: Mapping[str, Alias]
    problem: str | None = None
    known: bool = True


class AliasFollower:
    """Puts the store's aliases in force, on the loader's thread.

    What can't be followed changes nothing: a file that is damaged or gone, or an alias that points at what can't be
    served. If it was so from the start, requests that would have followed the alias are refused.
    """

    def __init__(self, store: Path, registry: Registry, health: StoreHealth) -> None:
        """Nothing is read yet; `registry` has the aliases in force, and `health` is told of problems."""
        self._store = store
        self._registry = registry
        self._health = health
        self._known: set[str] = set()

    def read(self, name: str) -> ReadAliases:
        """The aliases of a model."""
        in_force = self._registry.aliases(name)
        try:
            found = find_aliases(self._store, name)
        except BundleError as error:
            if name in self._known:
                return ReadAliases(in_force, f"{error} The aliases stay {_KEPT}")
            return ReadAliases({}, str(error), known=False)
        if found is None and in_force:
            return ReadAliases(in_force, f"{name}: {ALIASES} is gone. The aliases stay {_KEPT}")
        self._known.add(name)
        return ReadAliases(found or {})

    def put_in_force(
        self,
        name: str,
        aliases: Mapping[str, Alias],
        read: ReadAliases,
        *,
        broken: Collection[str],
        missing: Mapping[str, Trouble],
    ) -> None:
        """Set a model's aliases, once all that could be loaded is served, and say what of it can't be answered.

        Args:
            name: of the model.
            aliases: those that can be in force.
            read: those that should be.
            broken: names of those that point at what can't be served.
            missing: the versions that lie in the store and should be served, but aren't.
        """
        before = self._registry.unserved().get(name)
        answering = before is not None and before.of(None) is None
        served = self._registry.models().get(name, {})
        refused, problems = {}, [read.problem] if read.problem else []
        for alias in broken:
            why = _why(name, alias, read.aliases[alias], served, missing)
            if alias in aliases or (alias == DEFAULT_ALIAS and answering):
                problems.append(f"{why} Requests are answered {_KEPT}")
            else:
                problems.append(why)
                refused[alias] = Trouble(why)
        model = None
        if not read.known:
            model = Trouble(f"{read.problem} Requests must name a version of {name}.")
        elif missing and not served:
            model = missing[max(missing, key=int)]
        self._registry.set_aliases(name, aliases)
        self._registry.set_unserved(name, Unserved(model=model, aliases=refused, versions=missing))
        self._health.tell(_file(name), " ".join(problems) or None)

    def forget(self, name: str) -> None:
        """Forget a model that is neither in the store nor served."""
        self._known.discard(name)
        self._health.forget(_file(name))


def _file(name: str) -> str:
    return f"{name}/{ALIASES}"


def _why(name: str, alias: str, to: Alias, served: Collection[str], missing: Mapping[str, Trouble]) -> str:
    version = next(version for version in to.versions if version not in served)
    reason = missing[version].reason if version in missing else f"Version {version} is not in the model store."
    return f"Alias {alias} of {name} can't be followed. {reason}"
