"""Programs that no Python package brings: taken from Debian if they are missing and we may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import pytest


def need(packages: Mapping[str, str], *, beside: Sequence[str] = ()) -> None:
    """Have these commands, given with the packages that hold them, or skip the test and say why.

    `beside` are packages that go with those that are missing.
    """
    missing = [package for command, package in packages.items() if shutil.which(command) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{', '.join(missing)} not installed, and only root could on a Debian system")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["apt-get", "update", "-qq"], [*install, *missing, *beside]):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if result.returncode:
            pytest.skip(f"{', '.join(missing)} can't be installed: {result.stderr.strip()[-500:]}")
