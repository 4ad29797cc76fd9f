"""The files for Ray: they say the same, and Ray's own schemas accept them where Ray is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "deploy/ray/serve.yaml"
SERVICE = ROOT / "deploy/ray/rayservice.yaml"


def _service():
    return yaml.safe_load(SERVICE.read_text())


@pytest.mark.files
def test_the_service_on_kubernetes_runs_the_same_application():
    assert yaml.safe_load(_service()["spec"]["serveConfigV2"]) == yaml.safe_load(SERVE.read_text())


@pytest.mark.files
def test_ingress_replicas_share_a_node_only_without_grpc():
    (application,) = yaml.safe_load(SERVE.read_text())["applications"]
    ray = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["ray"]
    assert "CONDCONV_GRPC_PORT=" in (ROOT / "Dockerfile").read_text()
    assert application["args"]["ingress_replicas"] > 1
    assert ray["command"][0].startswith("unset CONDCONV_GRPC_PORT && ")


@pytest.mark.files
def test_a_worker_has_room_for_its_replicas():
    (application,) = yaml.safe_load(SERVE.read_text())["applications"]
    arguments = application["args"]
    (workers,) = _service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    cpus = float(container["resources"]["limits"]["cpu"])
    assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]  # whole cores
    assert cpus >= arguments["num_cpus"] + arguments["ingress_cpus"]
    assert workers["maxReplicas"] * cpus >= (
        arguments["autoscaling"]["max_replicas"] * arguments["num_cpus"]
        + arguments["ingress_replicas"] * arguments["ingress_cpus"]
    )


@pytest.mark.files
def test_pods_run_the_image_as_compose_does_and_are_probed_without_wget():
    ray = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["ray"]["environment"]
    needed = [{"name": name, "value": ray[name]} for name in ("USER", "HOME", "RAY_TMPDIR")]
    cluster = _service()["spec"]["rayClusterConfig"]
    assert cluster["autoscalerOptions"]["env"] == needed
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["env"] == needed
        ports = {port["name"] for port in container["ports"]} | {52365}  # that of Ray's agent, on each node
        for probe in ("livenessProbe", "readinessProbe"):  # KubeRay's own ones call wget
            assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray isn't installed here: make test-ray")
def test_ray_accepts_the_configuration(monkeypatch, tmp_path):
    from ray.serve.schema import ServeDeploySchema

    from condconv_serve.cluster.ray.app import build

    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(SERVE.read_text())).applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    for name, value in application.runtime_env["env_vars"].items():
        monkeypatch.setenv(name, value)
    # As Ray calls it: with what the file says.
    built = build(application.args)
    assert built is not None
