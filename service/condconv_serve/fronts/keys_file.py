"""Adds keys to the server's keys file, while servers read it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from filelock import FileLock

from condconv_serve.errors import ConfigurationError
from condconv_serve.files import NoOrdinaryFile, read_limited, replacing
from condconv_serve.fronts.keys import ApiKey, parse_keys, write_keys

PRIVATE_MODE = 0o600
_MAX_BYTES = 16 * 2**20


def add_key(file: Path, key: ApiKey) -> bool:
    """Add a key to a keys file in one step: a server reads the old file or the new one.

    Owner and permissions stay as they are. A new file can be read by its owner only. A link stays a link.

    Args:
        file: the keys file; made if there is none, and allowed to be empty.
        key: what to add.

    Returns:
        Whether the file is new.

    Raises:
        ConfigurationError: the file has a key of this name, holds something else than keys, or can't be written.
    """
    file = Path(os.path.realpath(file))
    if not file.parent.is_dir():
        raise ConfigurationError(f"{file} can't be written: there is no directory {file.parent}.")
    try:
        with FileLock(file.with_name(f".{file.name}.lock"), poll_interval=0.01):
            keys = _with_one_more(file, key.name)
            before = file.stat() if file.exists() else None
            with replacing(file, mode=PRIVATE_MODE) as scratch:
                scratch.write_text(write_keys((*keys, key)), encoding="utf-8")
                if before is not None:
                    _keep_owner(scratch, before)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ConfigurationError(
                f"{file} can't be replaced, since it is mounted by itself. Change it where it comes from."
            ) from error
        raise ConfigurationError(f"{file} can't be written: {error.strerror}.") from error
    return before is None


def _with_one_more(file: Path, name: str) -> tuple[ApiKey, ...]:
    """The keys of a file to which one of this name can be added."""
    try:
        text = read_limited(file, _MAX_BYTES)
    except FileNotFoundError:
        return ()
    except NoOrdinaryFile as error:
        raise ConfigurationError(f"{file} is no ordinary file, so no key can be added to it.") from error
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror}.") from error
    if _is_empty(text):
        return ()
    try:
        keys = parse_keys(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file} is no keys file, so no key can be added to it: {error}") from error
    if name in (key.name for key in keys):
        raise ConfigurationError(
            f"{file} has a key named {name!r} already. Choose another name, or remove that entry first."
        )
    return keys


def _is_empty(text: bytes) -> bool:
    """Whether this is the beginning of a keys file rather than something else."""
    try:
        return not text.strip() or json.loads(text) == {"keys": []}
    except ValueError:
        return False


def _keep_owner(scratch: Path, before: os.stat_result) -> None:
    own = scratch.stat()
    if (own.st_uid, own.st_gid) == (before.st_uid, before.st_gid):
        return
    try:
        os.chown(scratch, before.st_uid, before.st_gid)
    except PermissionError as error:  # a server that runs as the owner could not read it any more
        raise ConfigurationError(
            "The keys file belongs to another user or group. Run this as that user, so that it stays so."
        ) from error
