"""Hidden directories inside the store, to write in. The next writer removes what a killed one left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

_PREFIX = ".writing-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch_directory(store: Path) -> Iterator[Path]:
    """Make a directory that readers pass over, since its name starts with a dot. It is removed in the end.

    Raises:
        OSError: the store can't be written.
    """
    _remove_abandoned(store)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=store, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        new = scratch / f"{_LOCK}-new"
        with _locked(new) as locked:
            # The lock file gets its name when it is locked. So a lock file with this name that isn't locked belongs to
            # a process that has ended.
            if locked:
                os.replace(new, scratch / _LOCK)
            yield scratch


def _remove_abandoned(store: Path) -> None:
    for file in store.glob(f"{_PREFIX}*/{_LOCK}"):
        with _locked(file) as locked:
            if locked:
                shutil.rmtree(file.parent, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Lock a file until the process ends, however that is, or the block; False if it is locked or can't be.

    The lock's file goes with its directory, so it doesn't matter whether filelock leaves it there.
    """
    lock = FileLock(file)
    with contextlib.suppress(OSError, NotImplementedError):  # a timeout is an OSError
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()
