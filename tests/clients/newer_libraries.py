"""Programs that were built for a newer system than this one, with that system's libraries.

A program needs at least the C library that it was built with. Debian's next release has it: its libraries are unpacked
into a folder, and its loader starts the program with them. Nothing is installed.
"""

from __future__ import annotations

import atexit
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.debian import mirror

RELEASE = "trixie"
PACKAGES = ("libc6", "libgcc-s1", "libssl3t64", "libstdc++6", "libzstd1", "zlib1g")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def command(program: Path) -> list[str]:
    """What starts a program; skips where it can't be started, and says why."""
    started = subprocess.run(["/bin/sh", "-c", '"$0" --version', program], capture_output=True, text=True, check=False)
    if started.returncode == 0:
        return [str(program)]
    reason = f"{program.name} doesn't start: {started.stderr.strip()[-300:]}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None or not KEYRING.exists():
        pytest.skip(f"{reason} Newer libraries can be had by root on a Debian system only.")
    try:
        libraries = _libraries()
    except subprocess.SubprocessError as error:
        pytest.skip(f"{reason} Debian's newer libraries can't be had: {getattr(error, 'stderr', error)}")
    return [str(next(libraries.glob("ld-linux*.so.*"))), "--library-path", str(libraries), str(program)]


@functools.cache
def _libraries() -> Path:
    """A folder with the libraries of `RELEASE`."""
    folder = Path(tempfile.mkdtemp(prefix="newer-libraries-"))
    atexit.register(shutil.rmtree, folder)
    for name in ("lists/partial", "archives/partial", "packages", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {RELEASE} main\n")
    apart = [
        f"Dir::Etc::sourcelist={folder}/sources.list", "Dir::Etc::sourceparts=/dev/null",
        f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root",
    ]  # fmt: skip
    options = [word for option in apart for word in ("-o", option)]
    _run(["apt-get", "-qq", *options, "update"], folder)
    _run(["apt-get", "-qq", *options, "download", *PACKAGES], folder / "packages")
    for package in (folder / "packages").glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(folder / "root")], folder)
    return folder / "root" / "usr" / "lib" / f"{platform.machine()}-linux-gnu"


def _run(words: Sequence[str], folder: Path) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
