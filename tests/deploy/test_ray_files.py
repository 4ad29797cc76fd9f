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
