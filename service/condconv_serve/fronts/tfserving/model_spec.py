"""Which model, and which version of it, a request means; and TensorFlow Serving's words for one that isn't there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from dataclasses import dataclass

from condconv_serve.errors import InvalidParameter, ModelNotFound, VersionNotFound
from condconv_serve.fronts.context import ServedModels

MAX_VERSION = 2**63 - 1
SHOWN = 256
"""Most characters of a name in a message. A model's name is that of a folder, so none is longer."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by name, and perhaps a version of it.

    Attributes:
        name: of the model.
        version: its number, or the name of an alias, which TensorFlow Serving calls a label; None leaves the choice to
            the server: the alias `default`, or else the newest version.
    """

    name: str
    version: str | None = None

    def __str__(self) -> str:
        """As TensorFlow Serving writes it in its errors."""
        name = self.name[:SHOWN]
        return f"Latest({name})" if self.version is None else f"Specific({name}, {self.version})"

    @contextlib.contextmanager
    def told_when_missing(self) -> Generator[None, None, None]:
        """Say in TensorFlow Serving's words that there is no such model. Clients that wait for a model compare them."""
        try:
            yield
        except (ModelNotFound, VersionNotFound) as error:
            raise type(error)(f"Servable not found for request: {self}") from error


def spec_of(models: ServedModels, name: str, *, version: str | None = None, label: str | None = None) -> ModelSpec:
    """Make a spec of what a request says; it gives a version or a label, or neither.

    Args:
        models: those that are served.
        name: of the model.
        version: a whole number. 0 is the same as none: that is what clients for OpenVINO's server mean by it.
        label: the name of an alias.

    Raises:
        InvalidParameter: the version is no number, or the model has no such label.
        ModelNotFound: a label is asked for, but the model isn't served.
    """
    if version is not None:
        return ModelSpec(name, _number(version))
    if label is None:
        return ModelSpec(name)
    spec = ModelSpec(name, label)
    aliases = models.aliases(name)
    if label in aliases:
        return spec
    if name not in models.models():
        with ModelSpec(name).told_when_missing():
            models.get(name)
    known = ", ".join(sorted(aliases)) or "none"
    raise InvalidParameter(
        f"Unrecognized servable version label: {label[:100]}. Labels are aliases; {name} has: {known}."
    )


def _number(version: str) -> str | None:
    if not re.fullmatch("[0-9]{1,30}", version) or int(version) > MAX_VERSION:
        raise InvalidParameter(f"Failed to convert version: {version[:100]} to numeric.")
    return str(int(version)) if int(version) else None
