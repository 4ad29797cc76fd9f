"""The Compose project with replicas: Prometheus sees them, alerts fire for the faults that are made, none is lost.

Runs with images of Debian's packages where a registry would be needed; the Compose file, nginx' and Prometheus'
configuration are the real ones, but for Prometheus' durations, which are divided by `FASTER`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.commands import ROOT, docker, run
from tests.deploy.prometheus_copy import write_faster_copy
from tests.deploy.promql import Prometheus, alert_questions, panel_questions, record_questions
from tests.deploy.traffic import PHOTO, Clients, without
from tests.free_ports import free_ports

pytestmark = pytest.mark.docker

FASTER = 10
PORTS = ("PORT", "GRPC_PORT", "PROXY_PORT", "GRAFANA_PORT", "ALERTMANAGER_PORT", "TEST_PROMETHEUS_PORT")
MODEL = "efficientnet-lite0-condconv-4e"
# Loading isn't faster than in real life, so an alert that allows five minutes for it may fire after thirty seconds.
SLOW_START = {"CondconvNotReady"}
# Nor is what a replica answers meanwhile: 503, which the proxy takes to another one. A few seconds of that, several
# times over, are a burn by the faster clock, though not by a real one.
# Where replicas share few cores with what starts again or overloads them, answers are late, which is rightly told, too.
SLOW_ANSWERS = {"CondconvLatencyBurnFast"}
RESTARTS = {*SLOW_START, *SLOW_ANSWERS, "CondconvAvailabilityBurnFast"}
# The clients send one photo over and over, which is routed otherwise than the reference images are, and rightly told.
ONE_PHOTO = {"CondconvRoutingDrift"}
# Of detectors the store has none, no alias mirrors requests, and each replica is one process.
UNUSED = ("condconv_detection", "condconv_shadow", "condconv_worker")
# They look back over days, in which there has been nothing yet but the faults that we have made.
SLOW_BURN = {"CondconvAvailabilityBurnSlow", "CondconvLatencyBurnSlow"}


class Project:
    """A running Compose project."""

    def __init__(self, directory: Path) -> None:
        """`directory` gets the model store and Prometheus' configuration."""
        self.store = directory / "store"
        shutil.copytree(ROOT / "model_store", self.store)
        write_faster_copy(ROOT / "deploy/prometheus", directory / "prometheus", by=FASTER)
        write_faster_copy(ROOT / "deploy/alertmanager", directory / "alertmanager", by=FASTER)
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._environment = {
            "CONDCONV_CPUS": "1",
            "CONDCONV_MEMORY": "2g",
            "CONDCONV_MODEL_STORE": str(self.store),
            "TEST_PROMETHEUS_CONFIG": str(directory / "prometheus"),
            "TEST_ALERTMANAGER_CONFIG": str(directory / "alertmanager"),
            "COMPOSE_PROJECT_NAME": "condconv-test",
            **{name: str(port) for name, port in self.ports.items()},
        }
        self.prometheus = Prometheus(f"http://127.0.0.1:{self.ports['TEST_PROMETHEUS_PORT']}")
        self.proxy = f"127.0.0.1:{self.ports['PROXY_PORT']}"
        self.key = ""
        self.password = ""

    def compose(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run Compose, version 2 if it is there."""
        has_plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        return run(
            *(("docker", "compose") if has_plugin else ("docker-compose",)),
            *("-f", "docker-compose.yml", "-f", "tests/deploy/compose.override.yml", "--profile", "replicas"),
            *arguments,
            timeout=timeout,
            check=check,
            env=self._environment,
        )

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, stopped ones included."""
        labels = ("label=com.docker.compose.project=condconv-test", f"label=com.docker.compose.service={service}")
        return docker("ps", "--all", "--quiet", *(f"--filter={label}" for label in labels)).split()

    def clients(self, threads: int, *, body: bytes = PHOTO, pause: float = 0) -> Clients:
        """Clients of the proxy."""
        return Clients(self.proxy, threads=threads, body=body, headers={"X-API-Key": self.key}, pause=pause)

    def wait_for_replicas(self, number: int) -> None:
        """Wait until so many are scraped and ready."""
        wait(lambda: self.prometheus.value('sum(condconv_ready{job="condconv"})') == number, within=180)

    def last_start(self) -> float:
        """When the youngest replica that is scraped was started, in seconds since 1970."""
        return self.prometheus.value('max(process_start_time_seconds{job="condconv"})')

    def wait_for_restart(self, after: float) -> None:
        """Wait until a replica that was started after `after` is scraped, and two are ready.

        Until its next scrape, one that has just been killed counts as ready: readiness alone says nothing.
        """
        wait(lambda: self.last_start() > after, within=180)
        self.wait_for_replicas(2)

    def firing(self) -> set[str]:
        """Names of alerts that fire, but for those that our traffic and our faults before raise rightly."""
        return self.prometheus.firing() - ONE_PHOTO - SLOW_BURN

    def wait_for_alerts(
        self, *names: str, within: float = 240, permitted: Collection[str] = (), seconds_more: float = 3
    ) -> None:
        """Wait until these fire, and check that none fires besides, neither by then nor `seconds_more` later."""
        wait(lambda: set(names) <= self.firing(), within=within, what=lambda: str(self.firing()))
        time.sleep(seconds_more)
        firing = self.firing()
        assert set(names) <= firing
        assert firing <= {*names, *permitted}

    def told(self) -> set[str]:
        """Names of alerts that Alertmanager has."""
        alerts = httpx.get(f"http://127.0.0.1:{self.ports['ALERTMANAGER_PORT']}/api/v2/alerts").json()
        return {alert["labels"]["alertname"] for alert in alerts}

    def wait_for_silence(self, *, within: float = 240) -> None:
        """Wait until no alert fires."""
        wait(lambda: not self.firing(), within=within, what=lambda: str(self.firing()))


def wait(condition: Callable[[], bool], *, within: float, what: Callable[[], str] = str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:  # not there yet
            pass
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def project(image: str, debian_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two replicas and everything around them, up and ready."""
    made = Project(tmp_path_factory.mktemp("compose"))
    try:
        made.compose("up", "--detach", "--scale", "replica=1")
        shown = made.compose("run", "--rm", "-T", "secrets", "show")
        found = re.search(r"(condconv_[\w-]{43})\s+Grafana: user admin, password (\S{20,})", shown)
        assert found is not None, shown
        made.key, made.password = found.groups()
        made.wait_for_replicas(2)
        yield made
    finally:
        made.prometheus.close()
        print(made.compose("logs", "--tail", "20", check=False)[-6000:])
        made.compose("down", "--volumes", "--timeout", "5", check=False)


def test_it_is_up_and_only_what_must_be_can_be_reached(project):
    # Shown once, and in nobody's log.
    assert project.key not in project.compose("run", "--rm", "-T", "secrets", "show")
    logs = project.compose("logs")
    assert "condconv_1" in logs or "condconv-1" in logs
    assert project.key not in logs
    assert project.password not in logs
    direct = f"http://127.0.0.1:{project.ports['PORT']}"
    for url in (direct, f"http://{project.proxy}"):
        assert httpx.post(f"{url}/predict", content=PHOTO, timeout=60).status_code == 401
        answer = httpx.post(f"{url}/predict", content=PHOTO, headers={"X-API-Key": project.key}, timeout=60)
        assert answer.json()["predictions"][0]["classes"][0]["label"] == "espresso"
        assert httpx.get(f"{url}/metrics", timeout=60).status_code == 404
    # Through what stands in for Grafana, Prometheus is reached by the address that is provisioned.
    assert httpx.get(f"http://127.0.0.1:{project.ports['GRAFANA_PORT']}", timeout=60).json()["status"] == "success"
    for service in ("condconv", "replica", "proxy", "alertmanager", "grafana", "secrets"):
        for container in project.containers(service):
            made = json.loads(docker("inspect", container))[0]
            assert made["HostConfig"]["ReadonlyRootfs"]
            assert made["HostConfig"]["CapDrop"] == ["ALL"]
            # Compose sets the same limit for memory and for memory with swap, so there is none.
            assert made["HostConfig"]["MemorySwap"] == made["HostConfig"]["Memory"] > 0
            bindings = [b for ports in (made["HostConfig"]["PortBindings"] or {}).values() for b in ports]
            assert {binding["HostIp"] for binding in bindings} <= {"127.0.0.1"}
            # The service, which faces strangers, sees its keys' hashes and no more.
            if service in ("condconv", "replica"):
                assert (
                    docker("exec", container, "sh", "-c", "ls /run/condconv; ls /run/grafana 2>&1 | head -1").split(
                        "\n", 1
                    )[0]
                    == "api-keys.json"
                )
                assert project.key not in docker("exec", container, "cat", "/run/condconv/api-keys.json")
    wait(lambda: "unhealthy" not in project.compose("ps") and "starting" not in project.compose("ps"), within=60)


def test_a_key_can_be_added_without_a_restart(project):
    found = re.search(r"condconv_[\w-]{43}", project.compose("run", "--rm", "-T", "secrets", "key", "ci"))
    assert found is not None
    headers = {"X-API-Key": found[0]}
    wait(
        lambda: httpx.post(f"http://{project.proxy}/predict", content=PHOTO, headers=headers).status_code == 200,
        within=60,
    )
    refused = project.compose("run", "--rm", "-T", "secrets", "key", "ci", check=False)
    assert "same name" in refused
    assert "Traceback" not in refused


def test_every_question_has_an_answer_and_no_alert_fires_while_all_is_well(project):
    with project.clients(3, pause=0.2) as clients:
        clients.wait_for(40)
        # What only rare events bring about: an error, a refusal, a version that is swapped in.
        for body in (b"no image", b""):
            httpx.post(f"http://{project.proxy}/predict", content=body, headers={"X-API-Key": project.key}, timeout=60)
        time.sleep(2 * 60 / FASTER)  # rules that look back at rules
        questions = [
            question
            for question in (*panel_questions(), *record_questions())
            if not any(name in question.expression for name in UNUSED)
        ]
        # A dashboard of real life looks back over a minute at least.
        silent = [question for question in questions if not project.prometheus.query(question.expression)]
        assert [f"{question.place}: {question.expression}" for question in silent] == []
        recorded = {question.place for question in record_questions()}
        assert [name for name in sorted(recorded) if not project.prometheus.query(name)] == []
        blind = [
            f"{alert.place}: {name}{labels}"
            for alert in alert_questions()
            for name, labels in alert.selectors()
            if not name.startswith(UNUSED) and not project.prometheus.query(name + labels)
        ]
        assert blind == []
        assert project.prometheus.firing() - ONE_PHOTO == set()
    assert without(clients.outcomes, [200]) == {}
    assert len(project.prometheus.up()) == 2
    assert project.prometheus.value('count(count by (instance) (condconv_batch_size_count{job="condconv"} > 0))') == 2


def test_a_broken_version_and_bad_requests_are_told_and_nothing_else(project):
    broken = project.store / MODEL / "2"
    hidden = broken.with_name(".2")
    shutil.copytree(broken.with_name("1"), hidden)
    manifest = hidden / "manifest.json"
    manifest.write_text(re.sub(r'"version": *"1"', '"version": "2"', manifest.read_text()))
    weights = hidden / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] + bytes(1000))
    for path in (hidden, *hidden.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    hidden.rename(broken)
    with project.clients(1, pause=0.3) as good, project.clients(1, body=b"no image", pause=0.3) as bad:
        project.wait_for_alerts("CondconvModelLoadFailed", "CondconvBadRequests")
        wait(lambda: project.told() >= {"CondconvModelLoadFailed", "CondconvBadRequests"}, within=60)
    shutil.rmtree(broken)
    assert without(good.outcomes, [200]) == {}, good.troubles
    assert without(bad.outcomes, [415]) == {}, bad.troubles
    with project.clients(1, pause=0.3):
        project.wait_for_silence()


def test_a_replica_that_hangs_is_told(project):
    (replica,) = project.containers("replica")
    docker("pause", replica)
    try:
        project.wait_for_alerts("CondconvReplicaDown")
    finally:
        docker("unpause", replica)
    project.wait_for_silence()


def test_a_server_that_hangs_is_started_again(project):
    (replica,) = project.containers("replica")
    before = project.last_start()
    # What the container's first process has started, and its threads, stop where they are.
    docker("exec", replica, "sh", "-c", "kill -STOP $(pgrep -P 1 2>/dev/null || cat /proc/1/task/1/children)")
    with project.clients(1, pause=0.3) as clients:
        project.wait_for_restart(before)
        clients.wait_for(5)
    assert without(clients.outcomes, [200]) == {}, clients.troubles
    project.wait_for_silence()


def test_overload_is_told(project):
    with project.clients(60) as clients:
        project.wait_for_alerts("CondconvRefusing", permitted=SLOW_ANSWERS)
    assert clients.outcomes[200]
    assert without(clients.outcomes, [200, 429]) == {}, clients.troubles
    project.wait_for_silence()


def test_killed_and_stopped_replicas_cost_no_request(project):
    (replica,) = project.containers("replica")
    with project.clients(4) as clients:
        clients.wait_for(20)
        for _ in range(2):
            before = project.last_start()
            os.kill(json.loads(docker("inspect", "--format", "{{.State.Pid}}", replica)), signal.SIGKILL)
            clients.wait_for(20)
            project.wait_for_restart(before)
            clients.wait_for(20)
        project.wait_for_alerts("CondconvRestarting", permitted=RESTARTS)
        before = project.last_start()
        docker("stop", "--time", "40", replica)
        clients.wait_for(20)
        docker("start", replica)
        project.wait_for_restart(before)
        clients.wait_for(20)
    print(f"two kills and a stop: {dict(clients.outcomes)}")
    assert without(clients.outcomes, [200]) == {}, clients.troubles
    assert project.firing() - RESTARTS == {"CondconvRestarting"}


def test_images_unlike_the_reference_images_are_told(project):
    with project.clients(1, pause=0.3):
        wait(lambda: project.prometheus.firing() >= ONE_PHOTO, within=300)


def test_an_engine_that_hangs_is_told_and_its_requests_go_to_others(project):
    name = "condconv-test-stalls"
    before = project.firing()
    project.compose("run", "--detach", "--name", name, "--use-aliases", "-e", "CONDCONV_STALL_TIMEOUT=0.001",
                    "--no-deps", "replica")  # fmt: skip
    try:
        project.wait_for_replicas(3)
        with project.clients(3) as clients:
            project.wait_for_alerts(
                "CondconvEngineStalled", "CondconvAvailabilityBurnFast", permitted={*SLOW_START, *before}
            )
        assert without(clients.outcomes, [200]) == {}, clients.troubles[-3:]
    finally:
        docker("rm", "--force", "--volumes", name)
