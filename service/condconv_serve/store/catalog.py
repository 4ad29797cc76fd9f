"""The store as a whole: which models and versions are in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from condconv_serve.domain.manifest import ModelName, VersionName
from condconv_serve.errors import BundleError, InvalidParameter, ModelNotFound, VersionNotFound
from condconv_serve.store.aliases import DEFAULT_ALIAS, read_aliases
from condconv_serve.store.bundle import MANIFEST

logger = logging.getLogger(__name__)

_model_name = TypeAdapter(ModelName)
_version_name = TypeAdapter(VersionName)


class Catalog:
    """Finds bundles by name. Directories that can't be bundles are ignored."""

    def __init__(self, root: Path) -> None:
        """Look at the store in the directory `root`.

        Raises:
            BundleError: there is no such directory.
        """
        if not root.is_dir():
            raise BundleError(f"The model store {root} is no directory.")
        self._root = root

    def models(self) -> tuple[str, ...]:
        """Names of all models with at least one version, sorted. Those that can't be read are ignored."""
        return tuple(sorted(name for name in self._children(self._root, _model_name) if self._has_versions(name)))

    def unreadable(self) -> tuple[str, ...]:
        """Names of the directories that may be models, but can't be listed, sorted."""
        return tuple(sorted(name for name in self._children(self._root, _model_name) if not self._can_be_listed(name)))

    def _can_be_listed(self, model: str) -> bool:
        try:
            self.versions(model)
        except OSError:
            return False
        return True

    def _has_versions(self, model: str) -> bool:
        try:
            return bool(self.versions(model))
        except OSError as error:
            logger.warning("%s can't be read in the model store: %s", model, error.strerror)
            return False

    def versions(self, model: str) -> tuple[str, ...]:
        """Versions of a model, oldest (smallest number) first; empty if there is no such model."""
        if not _matches(_model_name, model):
            return ()
        directory = self._root / model
        versions = (v for v in self._children(directory, _version_name) if (directory / v / MANIFEST).exists())
        return tuple(sorted(versions, key=int))

    def find(self, model: str, version: str | None = None) -> Path:
        """Return a bundle's directory; the newest version if None.

        Raises:
            ModelNotFound: no such model.
            VersionNotFound: no such version of it.
        """
        versions = self.versions(model)
        if not versions:
            name, slash, _ = model.partition("/")
            hint = " Give the name alone here, without a version." if slash and self.versions(name) else ""
            raise ModelNotFound(f"There is no model {model!r} in the store; there are: {self._known()}.{hint}")
        if version is not None and version not in versions:
            raise VersionNotFound(f"Model {model} has no version {version!r}; there are: {', '.join(versions)}.")
        return self._root / model / (version or versions[-1])

    def find_named(self, given: str) -> Path:
        """Return the directory of the bundle `NAME[/VERSION]`, as people write it.

        The version may be an alias. Without one it is what a server answers with: the alias `default`, or else the
        newest version. Of an alias that splits traffic it is the version with the most weight.

        Raises:
            InvalidParameter: it is of another form.
            ModelNotFound, VersionNotFound: as `find`.
            BundleError: the model's aliases can't be read.
        """
        model, slash, version = given.partition("/")
        if not model or (slash and not version) or "/" in version:
            raise InvalidParameter(
                f"{given!r} is no model. Write NAME, NAME/VERSION or NAME/ALIAS; there are: {self._known()}."
            )
        versions = self.versions(model)
        if not versions or version in versions:  # an alias can't be called like a version
            return self.find(model, version or None)
        aliases = read_aliases(self._root, model)
        if alias := aliases.get(version or DEFAULT_ALIAS):
            return self.find(model, alias.choose())
        if version:
            known = ", ".join((*versions, *sorted(aliases)))
            raise VersionNotFound(f"Model {model} has no version {version!r}; there are: {known}.")
        return self.find(model)

    def _known(self) -> str:
        return ", ".join(self.models()) or "none"

    def __iter__(self) -> Iterator[Path]:
        """All bundles, by model and version."""
        return (self._root / model / version for model in self.models() for version in self.versions(model))

    @staticmethod
    def _children(directory: Path, name: TypeAdapter[str]) -> list[str]:
        if not directory.is_dir():
            return []
        return [child.name for child in directory.iterdir() if child.is_dir() and _matches(name, child.name)]


def _matches(adapter: TypeAdapter[str], value: str) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True
