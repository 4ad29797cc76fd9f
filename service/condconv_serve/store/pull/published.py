"""The catalogue: where checkpoints are published, and what their bundles say about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from condconv_serve.documents import parse_document
from condconv_serve.domain import Label, TransformName
from condconv_serve.domain.manifest import Accuracy, ArchitectureSpec, Deviation, Level, ModelName, Sha256
from condconv_serve.errors import ConfigurationError, ModelNotFound
from condconv_serve.store.pull.download import Limits, fetch_small, shown
from condconv_serve.validation import Place, dotted

SCHEMA_VERSION: Final = 1
MAX_BYTES: Final = 4 * 2**20
"""Most bytes that a catalogue may have."""

_HOST: Final = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?"
_CATALOGUE_URL: Final = re.compile(rf"https?://([^\s/?#@]*@)?{_HOST}/\S*")
# No user and password: the URL ends up in manifests. Neither query nor fragment: the path's end names the file's kind.
_FileUrl = Annotated[
    str,
    StringConstraints(
        pattern=rf"^https?://{_HOST}/[A-Za-z0-9._~!$&'()*+,;=:@%/-]+\.(tar\.gz|tgz|tar|safetensors)$", max_length=2048
    ),
]
_Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")]
_RepositoryFile = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9][\w.-]*/){0,8}[A-Za-z0-9][\w.-]*\.safetensors$")
]
_Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,127}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class UrlSource(_Strict):
    """An archive with a TensorFlow checkpoint, or a safetensors file, behind a URL."""

    kind: Literal["url"]
    url: _FileUrl

    @property
    def key(self) -> str:
        """What the file's checksum is remembered by."""
        return self.url

    @property
    def page(self) -> str:
        """Where the weights were published."""
        return self.url

    @property
    def address(self) -> str:
        """URL of the file itself."""
        return self.url


class HubSource(_Strict):
    """A safetensors file on the Hugging Face Hub."""

    kind: Literal["hub"]
    repository: _Repository
    file: _RepositoryFile = "model.safetensors"
    revision: _Revision = "main"

    @property
    def key(self) -> str:
        """What the file's checksum is remembered by."""
        return f"hub:{self.repository}@{self.revision}/{self.file}"

    @property
    def page(self) -> str:
        """Where the weights were published."""
        return f"https://huggingface.co/{self.repository}"

    @property
    def address(self) -> str:
        """URL of the file itself."""
        return f"{self.page}/resolve/{self.revision}/{self.file}"


class Checkpoint(_Strict):
    """One published checkpoint. What is not known is None, never a guess."""

    name: ModelName
    title: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    architecture: ArchitectureSpec
    source: Annotated[UrlSource | HubSource, Field(discriminator="kind")]
    size: Annotated[int, Field(ge=1)] | None = None
    """Bytes of the file."""
    sha256: Sha256 | None = None
    licence: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    transform: TransformName | None = None
    """This, the mean, the deviation and the labels are as the source itself says if None, as in `ImportRequest`."""
    mean: tuple[Level, Level, Level] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    labels: Literal["imagenet-1k"] | Annotated[tuple[Label, ...], Field(min_length=1)] | None = None
    method: Annotated[str, StringConstraints(max_length=2000)] | None = None
    accuracy: tuple[Accuracy, ...] = ()
    """As published, not measured here."""


class Catalogue(_Strict):
    """All checkpoints of a catalogue, by name in their order."""

    schema_version: Literal[1] = SCHEMA_VERSION
    checkpoints: tuple[Checkpoint, ...]

    @model_validator(mode="after")
    def _names_differ(self) -> Catalogue:
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named more than once: {', '.join(twice)}")
        return self

    def find(self, name: str) -> Checkpoint:
        """Return a checkpoint by name.

        Raises:
            ModelNotFound: the catalogue has none of that name; says which it has.
        """
        for checkpoint in self.checkpoints:
            if checkpoint.name == name:
                return checkpoint
        known = ", ".join(checkpoint.name for checkpoint in self.checkpoints) or "none"
        raise ModelNotFound(f"The catalogue has no checkpoint {name!r}; it has: {known}.")


def read_catalogue(source: str | None = None, *, limits: Limits | None = None) -> Catalogue:
    """Read a catalogue.

    Args:
        source: path or http(s) URL of a JSON file; None is the one with the published CondConv checkpoints.
        limits: how patient to be with a URL.

    Raises:
        ConfigurationError: it can't be read, is newer than this program, or isn't valid; says where.
        DownloadFailed: the URL doesn't answer with a file of at most `MAX_BYTES`.
    """
    if source is None:
        name, raw = "the catalogue", files(__package__).joinpath("published.json").read_bytes()
    elif "://" in source:
        if not _CATALOGUE_URL.fullmatch(source):
            raise ConfigurationError(f"A catalogue is a file's path or an http(s) URL, not {source}.")
        name, raw = shown(source), fetch_small(source, max_bytes=MAX_BYTES, limits=limits or Limits())
    else:
        name, raw = Path(source).name, _read(Path(source))
    return parse_document(
        raw,
        Catalogue,
        name=name,
        error=ConfigurationError,
        newest=SCHEMA_VERSION,
        valid="a valid catalogue",
        write_place=_place,
    )


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"The catalogue {file} can't be read: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(f"The catalogue {file} has more than {MAX_BYTES} bytes.")
    return raw


def _place(place: Place, document: Any) -> str:
    """Where an error is, with the checkpoint's name in place of its number."""
    if len(place) > 1 and place[0] == "checkpoints" and isinstance(place[1], int):
        entry = document["checkpoints"][place[1]]
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            return dotted((repr(entry["name"][:100]), *place[2:]))
    return dotted(place)
