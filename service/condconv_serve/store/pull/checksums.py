"""Checksums of published files as they were at their first pull: `checksums.json` in the model store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from condconv_serve.documents import parse_document
from condconv_serve.domain.manifest import Sha256
from condconv_serve.errors import ConfigurationError
from condconv_serve.files import write_whole

NAME = "checksums.json"


class Known(BaseModel):
    """A file as it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    first_pulled: datetime


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    files: dict[str, Known] = {}


class Checksums:
    """Remembers files by where they come from. Several processes may share one."""

    def __init__(self, store: Path) -> None:
        """Remember in the model store `store`, which need not exist yet."""
        self._file = store / NAME

    def known(self, key: str) -> Known | None:
        """How a file was at its first pull, or None if it was never pulled.

        Raises:
            ConfigurationError: the record can't be read, is newer than this program, or isn't valid.
        """
        return self._read().files.get(key)

    def remember(self, key: str, *, sha256: str, size: int) -> None:
        """Remember a file in place of what was known of it.

        Raises:
            ConfigurationError: the record can't be read.
            OSError: it can't be written; then it is as it was.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._file.with_name(f".{NAME}.lock")):
            known = Known(sha256=sha256, size=size, first_pulled=datetime.now(UTC).replace(microsecond=0))
            document = _Document(files={**self._read().files, key: known})
            write_whole(self._file, document.model_dump_json(indent=2) + "\n", alone=True)

    def _read(self) -> _Document:
        try:
            raw = self._file.read_bytes()
        except FileNotFoundError:
            return _Document()
        except OSError as error:
            raise ConfigurationError(f"{NAME} in the model store can't be read: {error.strerror}.") from error
        return parse_document(
            raw,
            _Document,
            name=f"{NAME} in the model store",
            error=ConfigurationError,
            hint="Without it, every file counts as pulled for the first time.",
        )
