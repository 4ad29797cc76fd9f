"""Checksums of published files as they were at their first pull: `checksums.json` in the model store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from condconv_serve.domain.manifest import Sha256
from condconv_serve.errors import ConfigurationError

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
            handle, scratch = tempfile.mkstemp(prefix=f".{NAME}-", dir=self._file.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(document.model_dump_json(indent=2) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(scratch, 0o644)
                os.replace(scratch, self._file)
            except BaseException:
                os.unlink(scratch)
                raise

    def _read(self) -> _Document:
        try:
            raw = self._file.read_bytes()
        except FileNotFoundError:
            return _Document()
        except OSError as error:
            raise ConfigurationError(f"{NAME} in the model store can't be read: {error.strerror}.") from error
        try:
            return _Document.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            raise ConfigurationError(
                f"{NAME} in the model store is not valid or newer than this program: {place}: {first['msg']}. Without "
                "it, every file counts as pulled for the first time."
            ) from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
