"""Hidden directories of the store to write in. What a killed process has left of them, the next one removes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".writing-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_directory(store: Path) -> Iterator[Path]:
    """Make a directory whose leading dot keeps readers away, and remove it with all that is in it then.

    Raises:
        OSError: the store can't be written.
    """
    _remove_abandoned(store)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=store, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        with (scratch / f"{_LOCK}-new").open("w") as lock:
            # It gets its name once it is locked, so whoever finds it unlocked knows that its process has ended.
            if _locked(lock.fileno()):
                os.replace(lock.name, scratch / _LOCK)
            yield scratch


def _remove_abandoned(store: Path) -> None:
    for file in store.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), file.open("r+") as lock:
            if _locked(lock.fileno()):
                shutil.rmtree(file.parent, ignore_errors=True)


def _locked(file: int) -> bool:
    """Lock a file until it is closed, or its process ends, however that is; False if it is locked or can't be."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
