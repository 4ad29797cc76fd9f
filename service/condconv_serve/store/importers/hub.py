"""Directories as the Hugging Face Hub has them: a clone or a download of a repository, or an entry of its cache."""

from __future__ import annotations

from pathlib import Path

from condconv_serve.errors import ImportFailed

_FILES = ("model.safetensors", "pytorch_model.bin")
_SNAPSHOTS = "snapshots"


def weights_in(directory: Path) -> Path | None:
    """The file of weights in a directory; None if it is none of the Hub's.

    Raises:
        ImportFailed: it has several files of weights, or several snapshots, and none has the usual name.
    """
    if (directory / _SNAPSHOTS).is_dir():
        directory = _snapshot(directory)
    for name in _FILES:
        if (directory / name).is_file():
            return directory / name
    found = [file for file in sorted(directory.glob("*.safetensors")) if not file.name.startswith(".")]
    if len(found) > 1:
        raise ImportFailed(f"{directory.name} holds {len(found)} files of weights; name one, such as {found[0].name}.")
    return found[0] if found else None


def _snapshot(directory: Path) -> Path:
    """The snapshot that the cache calls `main`, or the only one."""
    main = directory / "refs" / "main"
    if main.is_file():
        revision = main.read_text(encoding="utf-8", errors="replace").strip()
        if (found := directory / _SNAPSHOTS / Path(revision).name).is_dir():
            return found
    snapshots = sorted(child for child in (directory / _SNAPSHOTS).iterdir() if child.is_dir())
    if len(snapshots) != 1:
        raise ImportFailed(f"{directory.name} holds {len(snapshots)} snapshots; name one of them.")
    return snapshots[0]
