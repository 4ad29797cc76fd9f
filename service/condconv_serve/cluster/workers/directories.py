"""The directory where fronts count: new for each start of a server, and gone with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "condconv-metrics-"
_IN_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def directory_for_metrics(parent: Path | None = None) -> Iterator[Path]:
    """A directory in memory, or else where temporary files are, that only this user may see.

    Servers that were killed could not remove theirs, so those of processes that are no more go, too.

    Args:
        parent: where to make it.
    """
    if parent is None:
        parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        if not _runs(left.name.removeprefix(_PREFIX).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    made = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
