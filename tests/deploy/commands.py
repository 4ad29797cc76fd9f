"""Runs commands, Docker's client among them, and finds those that may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, timeout: float = 600, check: bool = True, env: dict[str, str] | None = None) -> str:
    """Run a command in the project's directory, and fail the test if it fails; its output, both streams."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and result.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout[-4000:]}")
    return result.stdout


def client() -> str:
    """Docker's client: Debian's own once it is installed, since newer ones need a plugin for BuildKit."""
    debian = Path("/usr/bin/docker")
    return str(debian) if debian.exists() else "docker"


def docker(*arguments: str | Path, timeout: float = 600, check: bool = True, env: dict[str, str] | None = None) -> str:
    """Run the Docker client; what it printed, without the last line break."""
    return run(client(), *arguments, timeout=timeout, check=check, env=env).strip()


def tool(name: str, *, hint: str) -> str:
    """The path of a command; the test is skipped without it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {hint}")
    return found


def check(*command: str | Path) -> str:
    """Run a command that must succeed."""
    result = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
