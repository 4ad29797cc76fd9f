"""Programs that no Python package brings: taken from Debian if they are missing and we may."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ENVIRONMENT = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
"""Finds what Debian has for root, too."""
POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this file whether services may start."""


def need(packages: Mapping[str, str], *, beside: Sequence[str] = ()) -> None:
    """Have these commands, given with the packages that hold them, or skip the test and say why.

    `beside` are packages that go with those that are missing. No service starts because it was installed.
    """
    missing = [package for command, package in packages.items() if not shutil.which(command, path=ENVIRONMENT["PATH"])]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{', '.join(missing)} not installed, and only root could on a Debian system")
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    with _no_services():
        for command in (["apt-get", "update", "-qq"], [*install, *missing, *beside]):
            try:
                subprocess.run(
                    command,
                    env=ENVIRONMENT | {"DEBIAN_FRONTEND": "noninteractive"},
                    capture_output=True,
                    text=True,
                    timeout=600,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                said = getattr(error, "stderr", None) or str(error)
                pytest.skip(f"{', '.join(missing)} can't be installed: {said.strip()[-500:]}")


def mirror() -> str:
    """Where this machine has its Debian from."""
    for file in (*Path("/etc/apt").glob("sources.list.d/*.sources"), Path("/etc/apt/sources.list")):
        if file.exists() and (found := re.search(r"https?://\S*/debian/?(?=\s)", file.read_text())):
            return found[0]
    return "http://deb.debian.org/debian"


@contextmanager
def _no_services() -> Iterator[None]:
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
