"""Unpacks untrusted archives: regular files only, below one directory, within limits, all or nothing."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from condconv_serve.errors import ImportFailed

_GZIP_MAGIC = b"\x1f\x8b"
_METADATA_BYTES = 64 * 2**10
"""The most that a member's headers may take: tarfile reads them into memory, long names and attributes with them."""
_CHUNK = 2**20


def extract_tar(archive: Path, into: Path, *, max_bytes: int, max_members: int) -> None:
    """Unpack a `.tar` or `.tar.gz`.

    Links, devices, sparse files and names that lead out of the directory are refused rather than passed over: published
    weights have none. As there are no links at all, a name can't lead out through an earlier member either. Owners,
    modes and times are not restored. Nothing is decompressed beyond what the limits allow.

    Args:
        archive: the file to unpack.
        into: the directory to unpack into, which must be empty or not exist yet. If unpacking fails, it is removed.
        max_bytes: the most bytes that all files may have together, unpacked.
        max_members: the most files and directories.

    Raises:
        ImportFailed: the archive is damaged or truncated, breaks a limit or holds a forbidden member; says which.
    """
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        raise ImportFailed(f"{archive.name} can't be unpacked into {into.name}, which is not empty.")
    try:
        into.mkdir(parents=True, exist_ok=True)
        _extract(archive, into, max_bytes, max_members)
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, OSError | EOFError | zlib.error | tarfile.TarError | ValueError):
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ImportFailed(f"{archive.name} is no archive that can be unpacked: {reason}.") from error
        raise


def _extract(archive: Path, into: Path, max_bytes: int, max_members: int) -> None:
    with archive.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        source = _Metered(gzip.GzipFile(fileobj=raw) if zipped else raw, archive.name)
        source.allow(_METADATA_BYTES)
        total = members = 0
        with tarfile.open(fileobj=source, mode="r:") as tar:  # type: ignore[call-overload]  # read, seek, tell suffice
            while (member := tar.next()) is not None:
                target = into / _safe_name(member, archive.name)
                members += 1
                total += member.size
                if members > max_members:
                    raise ImportFailed(f"{archive.name} holds more than {max_members} files; that is the most allowed.")
                if total > max_bytes:
                    raise ImportFailed(f"{archive.name} unpacks to more than {max_bytes} bytes, the most allowed.")
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    source.allow(member.size)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write(tar, member, target)
                tar.members.clear()  # else it keeps every header it has seen
                source.allow(_METADATA_BYTES)
        # tarfile takes anything that is no header for the end. And only at the end of all comes gzip's checksum.
        if source.last_read.strip(b"\0") or not source.last_read:
            raise ImportFailed(f"{archive.name} is damaged or truncated: it stops without an end mark.")
        source.drain()


def _safe_name(member: tarfile.TarInfo, archive: str) -> PurePosixPath:
    """The member's path below the directory.

    Raises:
        ImportFailed: it leads elsewhere, or the member is neither a file nor a directory.
    """
    shown = repr(member.name[:100])
    ordinary = member.isdir() or (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse())
    if not ordinary or member.size < 0:
        raise ImportFailed(f"{archive} holds {shown}, which is neither a file nor a directory; nothing else is taken.")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or any(c in member.name for c in "\\:\0"):
        raise ImportFailed(f"{archive} holds {shown}, a name that may lead out of the directory it is unpacked into.")
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name[:100]!r} has no content")
    with target.open("xb") as file:  # the same name twice is refused
        shutil.copyfileobj(content, file, _CHUNK)
    if target.stat().st_size != member.size:
        raise EOFError(f"{member.name[:100]!r} is truncated")


class _Metered:
    """A stream that stops at a limit, so a zip bomb is noticed before it fills the memory."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, name: str) -> None:
        self._stream = stream
        self._name = name
        self._limit = 0
        self.last_read = b""

    def allow(self, count: int) -> None:
        """Allow this many bytes from here, plus the few that fill up a block."""
        self._limit = self.tell() + count + tarfile.BLOCKSIZE

    def read(self, count: int = -1) -> bytes:
        self._check(count)
        self.last_read = self._stream.read(count)
        return self.last_read

    def seek(self, position: int) -> int:
        self._check(position - self.tell())
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def drain(self) -> None:
        """Read what is left, which may be a little padding."""
        while self._stream.read(tarfile.BLOCKSIZE):
            self._check(0)

    def _check(self, count: int) -> None:
        if count < 0 or self.tell() + count > self._limit:
            raise ImportFailed(f"{self._name} is damaged, or unpacks to more than its headers say.")
