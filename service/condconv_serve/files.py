"""Files: replaced whole or not at all, so readers see the old file or the new one; read within limits; checksums."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MODE = 0o644
_RANDOM = 8
"""Characters that `tempfile` puts at the end of a name."""


class FileTooLarge(OSError):
    """A file has more bytes than its reader takes; `size` is how many."""

    def __init__(self, file: Path, size: int) -> None:
        """Say how large the file is."""
        super().__init__(errno.EFBIG, os.strerror(errno.EFBIG), str(file))
        self.size = size


class NoOrdinaryFile(OSError):
    """What was to be read is a directory, a pipe, a socket or a device."""

    def __init__(self, file: Path) -> None:
        """Say which one."""
        super().__init__(errno.EINVAL, "it is no ordinary file", str(file))


def read_limited(file: Path, most: int) -> bytes:
    """Read a whole file of `most` bytes at most.

    Raises:
        NoOrdinaryFile: it is none; opening a pipe might never end.
        FileTooLarge: it has more bytes.
        OSError: it can't be read.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise NoOrdinaryFile(file)
    with file.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > most:
            raise FileTooLarge(file, size)
        return handle.read()


def write_whole(file: Path, content: bytes | str, *, alone: bool = False) -> None:
    """Put a file in place of the one that is there, if any, in one step; text becomes UTF-8.

    Args:
        file: where to write.
        content: what to write.
        alone: see `replacing`.

    Raises:
        OSError: the disk is full or not writable; the file is as it was.
    """
    with replacing(file, alone=alone) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(file: Path, *, alone: bool = False, mode: int = _MODE) -> Iterator[Path]:
    """Write a hidden file beside another one, which it replaces in the end. If anything fails, it is removed.

    The new file has the permissions of the old one. It is on the disk before it takes its place, so a power cut leaves
    one of the two.

    Args:
        file: what to replace; it need not exist.
        alone: nobody else writes this file now, so leftovers of killed writers are removed first.
        mode: permissions if there is no old file.

    Yields:
        The empty file to write to.

    Raises:
        OSError: the disk is full or not writable; the file is as it was.
    """
    prefix = f".{file.name}-"
    if alone:
        for left in file.parent.glob(glob.escape(prefix) + "?" * _RANDOM):
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=prefix, dir=file.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        flush(scratch, mode=file.stat().st_mode & 0o777 if file.exists() else mode)
        os.replace(scratch, file)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    sync_directory(file.parent)


def flush(file: Path, *, mode: int = _MODE) -> None:
    """Give a file its permissions, and wait until the disk has its content.

    Raises:
        OSError: the disk is full.
    """
    file.chmod(mode)
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, for instance after a rename, if the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: it can't be read.
    """
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
