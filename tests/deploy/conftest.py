"""A Docker engine and the images, made of Debian's packages where registries can't be reached."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import mirror, need
from tests.deploy.commands import ROOT, client, docker, run

PACKAGES = {"dockerd": "docker.io", "docker-compose": "docker-compose", "debootstrap": "debootstrap"}
CPU_IMAGE = "condconv-serve:cpu"


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine: the one that the environment names or that runs, or one of our own."""
    need(PACKAGES, beside=("iptables", "ca-certificates"))
    if subprocess.run([client(), "info"], capture_output=True, check=False).returncode == 0:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("no Docker engine runs, and only root could start one")
    home = Path(tempfile.mkdtemp(prefix="docker-", dir="/var/tmp"))  # /tmp may be in memory
    log = home / "log"
    socket = f"unix://{home}/socket"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["dockerd", "--data-root", home / "data", "--exec-root", home / "exec", "--pidfile", home / "pid",
             "--host", socket],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([client(), "--host", socket, "info"], capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"no Docker engine can be started here:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        os.environ["DOCKER_HOST"] = socket
        yield
        containers = docker("ps", "-aq").split()
        if containers:
            docker("rm", "--force", "--volumes", *containers)
    finally:
        os.environ.pop("DOCKER_HOST", None)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def base_image(engine: None) -> str:
    """What the real Dockerfile names if it is there; else Debian with its Python, and this machine's certificates."""
    named = re.search(r"ARG BASE_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert named is not None
    if docker("image", "ls", "-q", named[1]):
        return named[1]
    made = "condconv-test/base"
    if docker("image", "ls", "-q", made):
        return made
    if os.geteuid() != 0:
        return named[1]  # for Docker to pull
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", root,
            mirror())  # fmt: skip
        for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*",
                        "usr/share/locale/*", "var/log/*"):  # fmt: skip
            for unneeded in root.glob(pattern):
                shutil.rmtree(unneeded) if unneeded.is_dir() and not unneeded.is_symlink() else unneeded.unlink()
        for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
            shutil.copy(certificate, root / "usr/local/share/ca-certificates")
        run("chroot", root, "update-ca-certificates")
        options = {"cert": "/etc/ssl/certs/ca-certificates.crt", "timeout": "180"}
        for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
            if found := re.match(r"global\.((?:extra-)?index-url)='(https?://.*)'", line):
                options[found[1]] = found[2]
        (root / "etc/pip.conf").write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in options.items()))
        archive = Path(directory) / "root.tar"
        run("tar", "-C", root, "-cf", archive, ".")
        docker("import", archive, made)
    return made


@pytest.fixture(scope="session")
def image(base_image: str) -> str:
    """The real image for CPUs, built by the classic builder."""
    docker("build", "--target", "cpu", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", CPU_IMAGE, ".",
           env={"DOCKER_BUILDKIT": "0"})  # fmt: skip
    return CPU_IMAGE


@pytest.fixture(scope="session")
def debian_image(base_image: str) -> str:
    """Debian's Prometheus and nginx."""
    name = "condconv-test/debian"
    docker("build", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", name, "-f", "tests/deploy/debian.Dockerfile",
           "tests/deploy", env={"DOCKER_BUILDKIT": "0"})  # fmt: skip
    return name
