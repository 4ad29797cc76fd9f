"""The image for CPUs: what is in it, and how it behaves as a container."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from packaging.utils import canonicalize_name

from tests.deploy.commands import docker
from tests.deploy.traffic import PHOTO, Clients, without

pytestmark = pytest.mark.docker

MAX_BYTES = 1_500_000_000
LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")


class Container:
    """A container of the service; `url` reaches it without a proxy in between."""

    def __init__(self, name: str) -> None:
        self.id = name

    @property
    def state(self) -> dict:
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.id))

    @property
    def address(self) -> str:
        return docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}:8000", self.id)

    @property
    def log(self) -> str:
        return docker("logs", self.id)

    def ready(self, *, within: float = 120) -> Container:
        """Wait for it."""
        deadline = time.monotonic() + within
        while True:
            try:
                if httpx.get(f"http://{self.address}/readyz", timeout=5).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.2)

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        text = httpx.get(f"http://{self.address}/metrics", timeout=60).text
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])


@pytest.fixture
def start(image: str) -> Iterator[Callable[..., Container]]:
    """Start containers of the image, with options for `docker run`; they are removed in the end."""
    started: list[str] = []

    def begin(*options: str) -> Container:
        started.append(docker("run", "--detach", *LOCKED, *options, image))
        return Container(started[-1])

    yield begin
    docker("rm", "--force", "--volumes", *started, check=False)


def test_it_is_small(image, base_image, record_property):
    size, base = (int(docker("inspect", "--format", "{{.Size}}", name)) for name in (image, base_image))
    record_property("image bytes", size)
    print(f"image {size / 1e6:.0f} MB, {(size - base) / 1e6:.0f} MB of it above its base")
    assert size < MAX_BYTES


def test_it_has_no_compilers_caches_or_build_tools(image, base_image, tmp_path):
    files = []
    for name in (image, base_image):
        container = docker("create", name, "true")
        archive = tmp_path / "files.tar"
        docker("export", "--output", archive, container)
        docker("rm", container)
        with tarfile.open(archive) as tar:
            files.append({member.name for member in tar})
    added = files[0] - files[1]
    assert "opt/venv/bin/python3" in added
    assert "opt/condconv/condconv_serve/runtime/kernels/libcondconv.so" in added
    unwanted = re.compile(
        r"(^|/)(gcc|cc|cc1|g\+\+|clang|ld|as|strip|make|pip)(-?[0-9.]+)?$|(^|/)\.cache/|/pip/|var/lib/apt/lists/.|"
        r"\.whl$|\.deb$|(^|/)\.git/|ziglang|/csrc/|^src/|^opt/tools|tensorflow/include/|^root/."
    )
    assert sorted(name for name in added if unwanted.search(name)) == []


def test_what_it_says_about_itself(image):
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0"
    assert {"title", "description", "version", "revision"} <= set(labels)
    assert docker("run", "--rm", image, "--version").split()[-1] == labels["version"]


def test_read_only_without_rights_it_is_healthy_and_knows_a_photo(start):
    container = start("--memory", "2g", "--cpus", "1").ready()
    url = f"http://{container.address}"
    assert docker("exec", container.id, "id", "-u") == "10001"
    asked = httpx.post(f"{url}/predict?routing=true", content=PHOTO, timeout=60)
    answer = asked.raise_for_status().json()["predictions"][0]
    assert answer["classes"][0]["label"] == "espresso"
    assert answer["routing"]
    multipart = httpx.post(f"{url}/predict", files=[("file", ("a.jpg", PHOTO + bytes(2_000_000)))], timeout=60)
    assert multipart.status_code == 200, multipart.text

    deadline = time.monotonic() + 120
    while container.state["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, container.state["Health"]
        time.sleep(0.5)
    assert "ERROR" not in container.log
    assert "Traceback" not in container.log
    assert docker("diff", container.id) == ""


def test_the_health_check_says_no_while_nobody_serves(image):
    check = json.loads(docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", image))[1:]
    container = docker("run", "--detach", "--entrypoint", "sleep", image, "60")
    said = docker("exec", container, *check, check=False)
    docker("rm", "--force", container)
    assert said.startswith("no answer")


def test_a_setting_that_is_wrong_ends_it_with_a_line(image):
    said = docker("run", "--rm", "--env", "CONDCONV_MODEL_STORE=/nowhere", image, check=False)
    assert "/nowhere" in said
    assert "Traceback" not in said


def test_limits_of_cpu_and_memory_are_kept_and_followed(start):
    one = start("--memory", "2g", "--cpus", "1").ready()
    assert one.metric("condconv_streams") == 1
    assert "1 streams" in one.log
    assert one.metric("condconv_memory_limit_bytes") == 2 * 2**30
    before, started = one.metric("process_cpu_seconds_total"), time.monotonic()
    with Clients(one.address, threads=8) as clients:
        clients.wait_for(60)
        time.sleep(3)
        used = (one.metric("process_cpu_seconds_total") - before) / (time.monotonic() - started)
    print(f"{used:.2f} CPUs used of 1")
    assert used < 1.1
    assert without(clients.outcomes, [200]) == {}
    assert not one.state["OOMKilled"]
    if (os.cpu_count() or 1) > 1:
        docker("rm", "--force", one.id)
        assert start("--cpus", "2", "--cpuset-cpus", "0,1").ready().metric("condconv_streams") == _physical_cores(0, 1)


def _physical_cores(*cpus: int) -> int:
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({Path(topology.format(cpu)).read_text() for cpu in cpus})


def test_stopped_under_load_it_answers_what_it_took(start):
    container = start("--memory", "2g").ready()
    with Clients(container.address, threads=12) as clients:
        clients.wait_for(30)
        started = time.monotonic()
        docker("stop", "--time", "40", container.id)
        seconds = time.monotonic() - started
        deadline = time.monotonic() + 60
        while not clients.outcomes["refused"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    print(f"stopped in {seconds:.1f} s: {dict(clients.outcomes)}")
    assert without(clients.outcomes, [200, "refused"]) == {}, clients.troubles
    assert clients.outcomes["refused"]
    assert container.state["ExitCode"] == 0
    assert seconds < 20


def test_killed_it_comes_back(start):
    container = start("--memory", "2g", "--restart", "unless-stopped").ready()
    os.kill(container.state["Pid"], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while docker("inspect", "--format", "{{.RestartCount}} {{.State.Running}}", container.id) != "1 true":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    container.ready()
    assert httpx.post(f"http://{container.address}/predict", content=PHOTO, timeout=60).status_code == 200


def test_another_store_can_be_mounted(start, tmp_path):
    # Readable for everybody, as the container's user is nobody here.
    tmp_path.chmod(0o755)
    (tmp_path / "store").mkdir()
    for source in sorted(Path("model_store").rglob("*")):
        target = tmp_path / "store" / source.relative_to("model_store")
        target.mkdir(parents=True, exist_ok=True) if source.is_dir() else target.write_bytes(source.read_bytes())
    version = next((tmp_path / "store").glob("*/1"))
    version.rename(version.with_name("7"))
    manifest = version.with_name("7") / "manifest.json"
    manifest.write_text(re.sub(r'"version": *"1"', '"version": "7"', manifest.read_text()))
    container = start("--volume", f"{tmp_path / 'store'}:/models:ro").ready()
    answer = httpx.post(f"http://{container.address}/predict", content=PHOTO, timeout=60)
    assert answer.json()["model"]["version"] == "7"


def test_buildkit_builds_it_too_and_lists_what_is_in_it(base_image, tmp_path):
    docker("build", "--target", "sbom", "--build-arg", f"BASE_IMAGE={base_image}", "--output", tmp_path, ".",
           env={"DOCKER_BUILDKIT": "1"})  # fmt: skip
    python = json.loads((tmp_path / "python.cdx.json").read_text())
    assert python["bomFormat"] == "CycloneDX"
    # Spelt as each package's own metadata does, which is not always as one installs it.
    names = {canonicalize_name(component["name"]) for component in python["components"]}
    assert {"tensorflow-cpu", "keras", "fastapi", "pillow"} <= names
    assert "pytest" not in names
    debian = (tmp_path / "debian.tsv").read_text()
    assert "libc6" in debian
    assert "binutils" not in debian
