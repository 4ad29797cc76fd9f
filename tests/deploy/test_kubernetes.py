"""The manifests for Kubernetes: what Kustomize makes of them is valid, and in step with the code and with itself.

Kubernetes' own kinds are checked against its schemas, others against those in `crds`. Nothing here needs a cluster.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from condconv_serve.settings import Settings
from condconv_serve.telemetry.metrics import Metrics
from tests.deploy.commands import ROOT, check, tool
from tests.deploy.promql import rules

pytestmark = pytest.mark.files

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "keda", "kserve", "monitoring")
BUILT = ("base", *(f"overlays/{name}" for name in OVERLAYS), "tools/fetch", "tools/shell")
COMPONENTS = sorted(path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml"))
# Each with what it can't be used beside.
TOGETHER = ([name for name in COMPONENTS if name != "hpa"], [name for name in COMPONENTS if name != "keda"])
PODS = {"Pod", "Deployment", "Job", "ServingRuntime", "InferenceService"}

Manifest = dict[str, Any]


@functools.cache
def build(directory: str) -> tuple[Manifest, ...]:
    """What Kustomize makes of a directory."""
    kubectl = tool("kubectl", hint="pip install --group check")
    return tuple(yaml.safe_load_all(check(kubectl, "kustomize", KUBERNETES / directory)))


def combine(folder: Path, components: list[str], **more: Any) -> list[Manifest]:
    """What Kustomize makes of the base with components, as an overlay of one's own would."""
    here = os.path.relpath(KUBERNETES.resolve(), folder.resolve())
    kustomization = {
        "resources": [f"{here}/base"],
        "components": [f"{here}/components/{name}" for name in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return list(yaml.safe_load_all(check(tool("kubectl", hint="pip install --group check"), "kustomize", folder)))


def find(manifests: Any, kind: str, name: str = "condconv") -> Manifest:
    """The manifest of a kind and a name."""
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(manifest: Manifest) -> Manifest:
    """The pod's spec in a manifest; for KServe's kinds, the part that each has of it."""
    spec = manifest["spec"]
    return spec.get("template", {}).get("spec") or spec.get("predictor") or spec


def pods(manifests: Any) -> Iterator[Manifest]:
    """The specs of all pods. KServe makes its pods of two kinds, which are put together here."""
    kserve: Manifest = {}
    for manifest in manifests:
        if manifest["kind"] in ("ServingRuntime", "InferenceService"):
            kserve |= pod_of(manifest)
        elif manifest["kind"] in PODS:
            yield pod_of(manifest)
    if kserve:
        yield kserve


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def server(directory: str) -> Manifest:
    """The container that serves."""
    (found,) = [c for pod in pods(build(directory)) for c in pod["containers"] if c.get("args") == ["serve"]]
    return found


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}


def is_valid(manifests: Any, folder: Path) -> None:
    """Ask the schemas of Kubernetes, and those of other kinds."""
    jsonschema = pytest.importorskip("jsonschema", reason="pip install --group check")
    foreign = {file.stem: json.loads(file.read_text()) for file in (ROOT / "tests/deploy/crds").glob("*.json")}
    native = []
    for manifest in manifests:
        schema = foreign.get(manifest["kind"].lower())
        if schema is None:
            native.append(manifest)
        else:
            wrong = [f"{e.json_path}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(manifest)]
            assert wrong == [], manifest["kind"]
    # What these schemas leave open is Kubernetes' own.
    native += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "of-kserve"}, "spec": _only_pods(pod)}
        for pod in pods([m for m in manifests if m["apiVersion"].startswith("serving.kserve.io")])
    ]
    file = folder / "native.yaml"
    file.write_text(yaml.safe_dump_all(native))
    said = check(tool("kubernetes-validate", hint="pip install --group check"), "--strict", file)
    assert "WARN" not in said, said


def _only_pods(pod: Manifest) -> Manifest:
    """A pod's spec without KServe's own fields."""
    own = {"model", "minReplicas", "maxReplicas", "autoScaling", "deploymentStrategy", "labels"}
    return {key: value for key, value in pod.items() if key not in own | {"supportedModelFormats", "protocolVersions"}}


@pytest.mark.parametrize("directory", BUILT)
def test_what_kustomize_makes_is_valid(directory, tmp_path):
    is_valid(build(directory), tmp_path)


@pytest.mark.parametrize("components", TOGETHER, ids=["with keda", "with hpa"])
def test_all_components_go_together(components, tmp_path):
    made = combine(tmp_path, components)
    is_valid(made, tmp_path)
    kinds = {manifest["kind"] for manifest in made}
    assert {"Ingress", "Gateway", "HTTPRoute", "GRPCRoute", "PrometheusRule", "ServiceMonitor"} <= kinds
    assert ("ScaledObject" in kinds) != ("HorizontalPodAutoscaler" in kinds)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "replica"), 2),
        ("PodDisruptionBudget", ("spec", "unhealthyPodEviction"), "AlwaysAllow"),
        ("ScaledObject", ("spec", "minReplicas"), 2),
        ("ServiceMonitor", ("spec", "endpoints", 0, "relabeling"), []),
        ("PodMonitor", ("spec", "job"), "condconv"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "query"), "up"),
        ("HTTPRoute", ("spec", "rules", 0, "timeout"), "90s"),
        ("GRPCRoute", ("spec", "hostnames"), "grpc.example.org"),
        ("Gateway", ("spec", "listeners", 0, "port"), "80"),
        ("InferenceService", ("spec", "predictor", "model", "storage_uri"), "pvc://store"),
        ("InferenceService", ("spec", "predictor", "enableServiceLinks"), "no"),
        ("ServingRuntime", ("spec", "securityContext"), {}),
        ("ServingRuntime", ("spec", "containers", 0, "port"), []),
    ],
    ids=str,
)
def test_wrong_fields_are_found(kind, path, value, tmp_path):
    manifests = copy.deepcopy([*combine(tmp_path, TOGETHER[0]), *build("overlays/kserve")])
    manifest = next(m for m in manifests if m["kind"] == kind)
    *way, last = path
    functools.reduce(lambda part, key: part[key], way, manifest)[last] = value
    with pytest.raises(AssertionError):
        is_valid([m for m in manifests if m["apiVersion"] == manifest["apiVersion"] or m is manifest], tmp_path)


@pytest.mark.parametrize("directory", BUILT)
def test_settings_exist_and_name_the_ports(directory):
    names = {f"CONDCONV_{name.upper()}" for name in Settings.model_fields}
    for pod in pods(build(directory)):
        for container in containers(pod):
            assert set(environment(container)) - names == set()
    if not directory.startswith("tools"):
        container = server(directory)
        of_image = dict(re.findall(r"\b(CONDCONV_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
        variables = of_image | environment(container)
        Settings(**{key.removeprefix("CONDCONV_").lower(): value for key, value in variables.items()})
        expected = {
            Settings.model_fields["port"].default,
            *(int(variables[f"CONDCONV_{n}_PORT"]) for n in ("GRPC", "METRICS")),
        }
        assert {port["containerPort"] for port in container["ports"]} == expected
        # KServe's Service leads to the first one.
        assert container["ports"][0]["containerPort"] == Settings.model_fields["port"].default


@pytest.mark.parametrize("name", ["cpu", "gpu", "keda", "monitoring"])
def test_processes_follow_the_limit_of_cpus(name):
    container = server(f"overlays/{name}")
    assert environment(container)["CONDCONV_WORKERS"] == "auto"
    # It is whole CPUs that a process counts.
    assert int(container["resources"]["limits"]["cpu"]) >= 2


@pytest.mark.parametrize("directory", [name for name in BUILT if not name.startswith("tools")])
def test_probes_ask_what_is_there_at_the_port_for_metrics(directory):
    container = server(directory)
    table = (ROOT / "docs/api.md").read_text() + (ROOT / "docs/open-inference-protocol.md").read_text()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[name]["httpGet"]
        assert f"GET {asked['path']}`" in table
        assert ports.get(asked["port"], asked["port"]) == ports["metrics"]
    # While models are loaded, liveness has no say.
    startup = container["startupProbe"]
    assert startup["httpGet"] == container["readinessProbe"]["httpGet"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


@pytest.mark.parametrize("directory", [name for name in BUILT if not name.startswith("tools")])
def test_what_pods_mount_and_what_services_lead_to_is_there(directory):
    made = build(directory)
    for pod in pods(made):
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                find(made, "PersistentVolumeClaim", claim["claimName"])
            if source := volume.get("configMap"):
                assert {"fetch_models.py", "models.txt"} == set(find(made, "ConfigMap", source["name"])["data"])
    ports = {port["name"] for port in server(directory)["ports"]}
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in made if m["kind"] == "Deployment"]
    for service in (m for m in made if m["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        assert all(service["spec"]["selector"].items() <= pod.items() for pod in labels)
    for policy in (m["spec"] for m in made if m["kind"] == "NetworkPolicy"):
        named = {port["port"] for rule in policy.get("ingress", []) for port in rule["ports"]}
        assert {port for port in named if isinstance(port, str)} <= ports


def test_ways_in_lead_to_services_that_are_there(tmp_path):
    made = combine(tmp_path, ["ingress", "gateway"])
    services = {
        m["metadata"]["name"]: {p["name"]: p["port"] for p in m["spec"]["ports"]}
        for m in made
        if m["kind"] == "Service"
    }
    (rule,) = find(made, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"]["port"]["name"] in services[path["backend"]["service"]["name"]]
    listeners = {one["name"]: one for one in find(made, "Gateway")["spec"]["listeners"]}
    for route in (m for m in made if m["kind"] in ("HTTPRoute", "GRPCRoute")):
        (parent,) = route["spec"]["parentRefs"]
        listener = listeners[parent["sectionName"]]
        assert parent["name"] == "condconv"
        assert route["spec"]["hostnames"] == [listener["hostname"]]
        for backend in route["spec"]["rules"][0].get("backendRefs", []):
            assert backend["port"] in services[backend["name"]].values()
            # Nothing travels unencrypted but what is sent on to HTTPS.
            assert listener["tls"]["mode"] == "Terminate"
    assert find(made, "Ingress")["spec"]["tls"][0]["hosts"] == [rule["host"]]


def test_ways_in_let_through_what_the_service_takes(tmp_path):
    largest = Settings.model_fields["max_body_bytes"].default
    patience = max(Settings.model_fields[name].default for name in ("request_timeout", "stall_timeout"))
    made = combine(tmp_path, ["ingress", "gateway"])
    notes = find(made, "Ingress")["metadata"]["annotations"]
    assert _bytes(notes["nginx.ingress.kubernetes.io/proxy-body-size"]) == largest
    assert int(notes["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > patience
    (rule,) = find(made, "HTTPRoute")["spec"]["rules"]
    assert int(rule["timeouts"]["request"].removesuffix("s")) > patience
    policy = yaml.safe_load((KUBERNETES / "components/gateway/nginx-body-size.yaml").read_text())
    assert _bytes(policy["spec"]["body"]["maxSize"]) == largest


def _bytes(size: str) -> int:
    return int(size.removesuffix("m")) * 2**20


@pytest.mark.parametrize("directory", BUILT)
def test_an_image_is_named_in_one_place(directory, tmp_path):
    here = os.path.relpath(KUBERNETES.resolve(), tmp_path.resolve())
    pinned = "registry.example.org/condconv-serve@sha256:" + "0" * 64
    name, _, digest = pinned.partition("@")
    for file in ("images.yaml",):  # what an overlay of one's own would need for KServe's kinds, too
        (tmp_path / file).write_text((KUBERNETES / "overlays/kserve" / file).read_text())
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [f"{here}/{directory}"],
                "images": [{"name": "condconv-serve", "newName": name, "digest": digest}],
                "configurations": ["images.yaml"],
            }
        )
    )
    made = yaml.safe_load_all(check(tool("kubectl", hint="pip install --group check"), "kustomize", tmp_path))
    assert {container["image"] for pod in pods(made) for container in containers(pod)} == {pinned}
    tag = "gpu" if directory == "overlays/gpu" else "cpu"
    images = {container["image"] for pod in pods(build(directory)) for container in containers(pod)}
    assert images == {f"condconv-serve:{tag}"}


@pytest.mark.parametrize("directory", BUILT)
def test_pods_keep_to_the_restricted_profile(directory):
    for pod in pods(build(directory)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        # A Service named condconv would set CONDCONV_PORT.
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(
            set(volume) <= {"name", "secret", "emptyDir", "configMap", "persistentVolumeClaim"}
            for volume in pod["volumes"]
        )
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_the_guaranteed_class_is_that(tmp_path):
    def is_guaranteed(pod: Manifest) -> bool:
        return all(c["resources"]["requests"] == c["resources"]["limits"] for c in containers(pod))

    # In whatever order they are listed. What runs before the service counts, too.
    for components in (["guaranteed"], ["models", "guaranteed"], ["guaranteed", "models"]):
        (pod,) = pods(combine(tmp_path, components))
        assert len(containers(pod)) == len(components)
        assert is_guaranteed(pod), components
    (pod,) = pods(build("overlays/gpu"))
    assert is_guaranteed(pod)
    assert not is_guaranteed(next(pods(build("overlays/cpu"))))


@pytest.mark.parametrize("directory", [name for name in BUILT if not name.startswith("tools")])
def test_replicas_come_and_go_without_loss(directory):
    made = build(directory)
    fields = Settings.model_fields
    drain = float(environment(server(directory))["CONDCONV_DRAIN_DELAY"])
    for pod in pods(made):
        if pod.get("terminationGracePeriodSeconds"):
            assert pod["terminationGracePeriodSeconds"] > fields["shutdown_timeout"].default > drain
            zones = {one["topologyKey"] for one in pod["topologySpreadConstraints"]}
            assert "topology.kubernetes.io/zone" in zones
    budget = find(made, "PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["maxUnavailable"] == 1
    for deployment in (m["spec"] for m in made if m["kind"] == "Deployment"):
        startup = server(directory)["startupProbe"]
        assert deployment["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]
        assert deployment["minReadySeconds"] >= 10
        # An autoscaler's number isn't set back by the next `kubectl apply`.
        assert ("replicas" in deployment) != any(m["kind"] == "ScaledObject" for m in made)


def test_the_network_is_closed_but_for_what_is_named(tmp_path):
    def ways_out(*components: str) -> list[Manifest]:
        policies = [m["spec"] for m in combine(tmp_path, list(components)) if m["kind"] == "NetworkPolicy"]
        assert any("Egress" in policy["policyTypes"] for policy in policies)
        return [way for policy in policies for way in policy.get("egress", [])]

    assert ways_out("monitoring", "ingress", "hpa") == []
    names, collector = ways_out("traces")
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    (environment_of,) = [environment(c) for p in pods(combine(tmp_path, ["traces"])) for c in p["containers"]]
    endpoint = re.fullmatch(r"http://([\w-]+)\.([\w-]+):(\d+)", environment_of["CONDCONV_OTLP_ENDPOINT"])
    assert endpoint is not None
    assert [port["port"] for port in collector["ports"]] == [int(endpoint[3])]
    (to,) = collector["to"]
    assert to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == endpoint[2]
    names, downloads = ways_out("models")
    assert len(names["ports"]) == 2
    assert [port["port"] for port in downloads["ports"]] == [443]
    blocks = {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in downloads["to"]}
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(blocks["0.0.0.0/0"])
    assert "fc00::/7" in blocks["::/0"]


def test_the_operators_alerts_are_prometheus_own():
    check(sys.executable, KUBERNETES / "build.py", "--check")
    groups = find(build("overlays/monitoring"), "PrometheusRule")["spec"]["groups"]
    assert [rule for group in groups for rule in group["rules"]] == rules()


def test_prometheus_takes_the_operators_alerts(tmp_path):
    promtool = tool("promtool", hint="apt-get install prometheus")
    file = tmp_path / "alerts.yml"
    file.write_text(yaml.safe_dump(find(build("overlays/monitoring"), "PrometheusRule")["spec"]))
    check(promtool, "check", "rules", file)


def test_the_job_has_the_name_that_rules_ask_for():
    asked = set(re.findall(r'job="([^"]*)"', "".join(rule["expr"] for rule in rules())))
    made = build("overlays/monitoring")
    monitor = find(made, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    scraped = [
        m
        for m in made
        if m["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= m["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in m["spec"]["ports"]}
    ]
    assert {m["metadata"]["labels"][monitor["jobLabel"]] for m in scraped} == asked == {"condconv"}
    assert scraped[0]["spec"]["publishNotReadyAddresses"] is True
    made = build("overlays/kserve")
    monitor = find(made, "PodMonitor")["spec"]
    labels = find(made, "InferenceService")["spec"]["predictor"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {labels[monitor["jobLabel"]]} == asked
    assert monitor["podMetricsEndpoints"][0]["port"] in {p["name"] for p in server("overlays/kserve")["ports"]}


def test_the_dashboard_is_grafanas_own():
    config = find(build("overlays/monitoring"), "ConfigMap", "condconv-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"]["condconv.json"] == (ROOT / "deploy/grafana/dashboards/condconv.json").read_text()


def test_all_autoscalers_follow_the_same_figure(tmp_path):
    """Its queries are asked of two replicas with 20 and 4 waiting rows, by KEDA's sum and by pod."""
    promtool = tool("promtool", hint="apt-get install prometheus")
    (trigger,) = find(build("overlays/keda"), "ScaledObject")["spec"]["triggers"]
    kserve = find(build("overlays/kserve"), "InferenceService")["spec"]["predictor"]
    (metric,) = kserve["autoScaling"]["metrics"]
    autoscaler = find(combine(tmp_path, ["hpa"]), "HorizontalPodAutoscaler")["spec"]
    (pods_metric,) = autoscaler["metrics"]
    (rule,) = yaml.safe_load((KUBERNETES / "components/hpa/adapter-values.yaml").read_text())["rules"]["custom"]
    assert pods_metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert metric["external"]["metric"]["query"] == trigger["metadata"]["query"]
    assert metric["external"]["metric"]["serverAddress"] == trigger["metadata"]["serverAddress"]
    assert (
        trigger["metadata"]["threshold"]
        == metric["external"]["target"]["averageValue"]
        == pods_metric["pods"]["target"]["averageValue"]
    )
    scaled = find(build("overlays/keda"), "ScaledObject")["spec"]
    assert (
        (scaled["minReplicaCount"], scaled["maxReplicaCount"])
        == (autoscaler["minReplicas"], autoscaler["maxReplicas"])
        == (kserve["minReplicas"], kserve["maxReplicas"])
    )
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["behavior"]
    for target in (scaled["scaleTargetRef"], autoscaler["scaleTargetRef"]):
        assert target["name"] == "condconv"

    (name,) = {name for name, *_ in Metrics(CollectorRegistry()).describe() if name in trigger["metadata"]["query"]}
    assert re.match(rf"{name}\{{", rule["seriesQuery"])
    by_pod = (
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "pod")
        .replace("<<.Series>>", name)
        .replace("<<.LabelMatchers>>", 'namespace="n",pod=~"a|b"')
    )
    labels = 'job="condconv",namespace="n"'
    series = [
        {"series": f'{name}{{{labels},pod="{pod}"}}', "values": f"{rows}x20"} for pod, rows in (("a", 20), ("b", 4))
    ]
    by_replica = [{"labels": '{pod="a"}', "value": 20}, {"labels": '{pod="b"}', "value": 4}]
    cases = [
        {"expr": by_pod, "eval_time": "2m", "exp_samples": by_replica},
        {"expr": trigger["metadata"]["query"], "eval_time": "2m", "exp_samples": [{"labels": "{}", "value": 24}]},
    ]
    file = tmp_path / "queries.yml"
    tests = [{"interval": "10s", "input_series": series, "promql_expr_test": cases}]
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "10s", "tests": tests}))
    check(promtool, "test", "rules", file)


def test_documentation_names_what_is_there():
    text = "".join(
        file.read_text() for file in (ROOT / "docs/operations.md", ROOT / "README.md", *KUBERNETES.rglob("*.yaml"))
    )
    named = set(re.findall(r"deploy/kubernetes(?:/[\w./-]*\w)?", text))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert {f"deploy/kubernetes/overlays/{name}" for name in OVERLAYS} <= named
    assert set(COMPONENTS) <= set(re.findall(r"`([a-z]+)`", (ROOT / "docs/operations.md").read_text()))
