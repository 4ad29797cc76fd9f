"""The state of an unfinished run: one file, replaced in one step. A killed process loses one epoch at most."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import RootModel
from safetensors import SafetensorError, safe_open

from condconv_serve.documents import parse_document
from condconv_serve.errors import ConfigurationError, ServiceError
from condconv_serve.files import replacing, write_whole
from condconv_serve.store.tensors import save_tensors

_OPTIONS, _STATE, _LOCK = "options.json", "state.safetensors", "lock"


class RunDirectory:
    """Where a run keeps its decoded images and its state: a hidden folder beside the models that it will join."""

    def __init__(self, store: Path, name: str, version: str) -> None:
        """Look at the folder of the run that makes `name/version`; nothing is created yet."""
        self._of = f"{name}/{version}"
        self.path = store / f".training-{name}-{version}"

    @contextlib.contextmanager
    def claimed(self, options: Mapping[str, Any], *, resume: bool, restart: bool = False) -> Iterator[None]:
        """Own the folder until the block ends. It is removed if the run succeeds or can't begin, and kept otherwise.

        Args:
            options: what the run depends on; a resumed run must have the same.
            resume: continue an unfinished run, if there is one, rather than refuse to.
            restart: forget an unfinished run, rather than refuse to.

        Raises:
            ConfigurationError: there is an unfinished run and it isn't to be resumed, or its options were others, or
                another process is training it.
        """
        file = self.path / _OPTIONS
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if restart:
                self._forget()
            unfinished = file.exists()
            if unfinished and not resume:
                raise ConfigurationError(
                    f"There is an unfinished run of {self._of}: continue it with --resume, or forget it with --restart."
                )
            if unfinished:
                before = self._read_options(file)
                changed = [key for key in sorted({*before, *options}) if before.get(key) != options.get(key)]
                if changed:
                    was = ", ".join(f"{key} (was {before.get(key)!r}, is {options.get(key)!r})" for key in changed)
                    raise ConfigurationError(
                        f"The unfinished run can't be resumed, since these things differ now: {was}."
                    )
            else:
                write_whole(file, json.dumps(dict(options), indent=1), alone=True)
            try:
                yield
            except ServiceError:
                if not (self.path / _STATE).exists():
                    self._remove()
                raise
            self._remove()

    def _remove(self) -> None:
        """Remove the folder, unless somebody else has put something there."""
        self._forget()
        (self.path / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _forget(self) -> None:
        """Remove everything but the lock."""
        for child in self.path.iterdir():
            if child.is_dir():
                shutil.rmtree(child, ignore_errors=True)
            elif child.name != _LOCK:
                child.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock that ends with the process, however it ends. Its file goes with the folder."""
        try:
            held = FileLock(self.path / _LOCK).acquire(timeout=0)
        except Timeout as error:
            raise ConfigurationError(f"Another process is training {self._of}.") from error
        with held:
            yield

    def _read_options(self, file: Path) -> dict[str, Any]:
        return parse_document(
            file.read_bytes(),
            RootModel[dict[str, Any]],
            name=f"{_OPTIONS} of the unfinished run of {self._of}",
            error=ConfigurationError,
            hint="Forget the run with --restart.",
        ).root

    def save(self, tensors: Mapping[str, NDArray[Any]], figures: Mapping[str, Any]) -> None:
        """Write the state; until it is complete, the one before stays.

        Raises:
            OSError: the disk is full.
        """
        metadata = {"figures": json.dumps(dict(figures))}
        with replacing(self.path / _STATE, alone=True) as scratch:
            save_tensors(tensors, scratch, metadata)

    def load(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Read the state; None if there is none yet.

        Raises:
            ConfigurationError: it is damaged.
        """
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="np") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}, json.loads(  # noqa: SIM118
                    tensors.metadata()["figures"]
                )
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"The state of the unfinished run of {self._of} can't be read; forget it with --restart."
            ) from error


def variables_to_tensors(variables: Sequence[Any], prefix: str) -> dict[str, NDArray[Any]]:
    """Values of Keras variables by position."""
    return {f"{prefix}/{position}": np.array(variable) for position, variable in enumerate(variables)}


def tensors_to_variables(tensors: Mapping[str, NDArray[Any]], variables: Sequence[Any], prefix: str) -> None:
    """Give Keras variables their values back."""
    for position, variable in enumerate(variables):
        variable.assign(tensors[f"{prefix}/{position}"].reshape(variable.shape))
