"""The directory where fronts count: new for each start of a server, and gone with it."""

from __future__ import annotations

import contextlib
import fcntl
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

    Servers that were killed could not remove theirs, so those that no server holds any more go, too.

    Args:
        parent: where to make it.
    """
    if parent is None:
        parent = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        if (lock := _hold(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    made, lock = _made(parent)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _made(parent: Path) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        if (lock := _hold(made)) is not None:
            if made.exists():
                return made, lock
            os.close(lock)
        # Another server that has just started took it for one that was left.


def _hold(directory: Path) -> int | None:
    """An open file that holds a directory until it is closed or its process dies; None if another one holds it.

    Process ids would not do: containers may share the place, but not the ids.
    """
    try:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it has gone, or is another user's
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
