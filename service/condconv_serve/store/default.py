"""The default model of a store, for requests that name no model: `<store>/default.json`.

It is kept in the store, so that adding a model changes nothing, and all replicas that share the store agree.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from condconv_serve.documents import read_document
from condconv_serve.domain.manifest import ModelName
from condconv_serve.errors import BundleError, ConfigurationError, NoDefaultModel, StoreNotWritable
from condconv_serve.files import write_whole
from condconv_serve.store.catalog import Catalog

logger = logging.getLogger(__name__)

DEFAULT_MODEL: Final = "default.json"
_LOCK = ".default.lock"  # it stays, like that of the aliases
RETRY_SECONDS = 5.0
HOW_TO_SET: Final = "condconv models default NAME"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    model: ModelName


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """Which model is the default, and why.

    Attributes:
        name: of the model; None if there is none.
        reason: why it is this one; if there is none, a sentence that says what to do.
        chosen: whether somebody chose it. Otherwise it is the only one.
        broken: whether there is none because what somebody chose can't be read, or isn't there.
    """

    name: str | None
    reason: str
    chosen: bool = False
    broken: bool = False

    def demand(self) -> str:
        """The model's name.

        Raises:
            NoDefaultModel: there is none.
        """
        if self.name is None:
            raise NoDefaultModel(self.reason, retry_after=RETRY_SECONDS)
        return self.name


def read_default(store: Path) -> str | None:
    """The default model that the store names, whether it is there or not; None if it names none.

    Raises:
        BundleError: the file can't be read or is no such document.
    """
    document = read_document(store / DEFAULT_MODEL, _Document, name=DEFAULT_MODEL, error=BundleError)
    return None if document is None else document.model


def find_default(store: Path, models: Collection[str]) -> Default:
    """Find the default model: the one that the store names, or its only one. Nothing is guessed from names.

    Args:
        store: directory of the model store.
        models: names of the models in it.
    """
    known = ", ".join(sorted(models)) or "none"
    how = f"Name a model, or set the default: {HOW_TO_SET}."
    try:
        named = read_default(store)
    except BundleError as error:
        return Default(name=None, reason=f"{error} {how}", broken=True)
    if named in models:
        return Default(name=named, reason=f"{DEFAULT_MODEL} in the model store says so", chosen=True)
    if named is not None:
        return Default(
            name=None,
            reason=f"The default model {named} is not in the model store; there are: {known}. {how}",
            broken=True,
        )
    if len(models) == 1:
        (only,) = models
        return Default(name=only, reason="it is the only one in the model store")
    return Default(name=None, reason=f"No default model is set, and the model store holds: {known}. {how}")


def check_store(store: Path, *, default_model: str | None) -> tuple[str, ...]:
    """Check that there is something to serve.

    Args:
        store: directory of the model store.
        default_model: the model that somebody has set as the default, if any.

    Returns:
        The names of the store's models, also of those that can't be read now.

    Raises:
        BundleError: there is no such directory.
        ConfigurationError: the store is empty, or lacks that model.
    """
    catalog = Catalog(store)
    names = tuple(sorted({*catalog.models(), *catalog.unreadable()}))
    if not names:
        raise ConfigurationError(f"The model store {store} holds no bundle (<model>/<version>/manifest.json).")
    if default_model is not None and default_model not in names:
        raise ConfigurationError(
            f"The default model {default_model!r} is not in the store; there are: {', '.join(names)}."
        )
    return names


def set_default(store: Path, model: str) -> None:
    """Make a model the default one.

    Raises:
        BundleError: there is no such store. ModelNotFound: there is no such model in it.
        StoreNotWritable: nothing can be written there.
    """
    Catalog(store).find(model)
    try:
        with FileLock(store / _LOCK, poll_interval=0.01):
            _write(store, model)
    except OSError as error:
        raise StoreNotWritable(
            f"The default model can't be written to the model store: {error.strerror or error}."
        ) from error


def keep_default(store: Path, added: str, *, before: Collection[str]) -> None:
    """Store the default model after a model was added, so that no model that comes later changes it.

    A default that is stored stays, unless the store was empty and it is a model that has gone. If none is stored, it
    becomes the only model that there was, which was the default, or else the first one.

    Args:
        store: directory of the model store.
        added: the model that was added.
        before: the models that were there before.
    """
    if len(before) > 1:
        return
    try:
        with FileLock(store / _LOCK, poll_interval=0.01):
            named = read_default(store)
            if named is None or (not before and named not in Catalog(store).models()):
                _write(store, next(iter(before), added))
    except BundleError as error:
        logger.warning("%s; it stays as it is", error)
    except OSError as error:  # the bundle is there all the same
        logger.warning("the default model can't be stored: %s", error.strerror or error)


def _write(store: Path, model: str) -> None:
    write_whole(store / DEFAULT_MODEL, _Document(model=model).model_dump_json(indent=2) + "\n", alone=True)
