"""The files that deploy the service: valid, and in step with the code and with each other."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from condconv_serve.settings import Settings
from condconv_serve.telemetry.metrics import Metrics
from tests.deploy.commands import ROOT, check, tool
from tests.deploy.promql import (
    Question,
    alert_questions,
    dashboard,
    panel_questions,
    record_questions,
    rules,
)

pytestmark = pytest.mark.files

PROMETHEUS = ROOT / "deploy/prometheus"
QUESTIONS = [*panel_questions(), *record_questions(), *alert_questions()]
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
# Labels that Prometheus gives, and that alerts have.
SCRAPED = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def labels_of() -> dict[str, set[str]]:
    """The labels of all series there can be, by name."""
    metrics = Metrics(CollectorRegistry())
    known = {
        name + suffix: set(labels) | SCRAPED
        for name, kind, labels, _ in metrics.describe()
        for suffix in SUFFIXES.get(kind, ("",))
    }
    for family in metrics.registry.collect():
        for sample in family.samples:
            known.setdefault(sample.name, set(sample.labels) | SCRAPED)
    known |= {rule["record"]: SCRAPED for rule in rules() if "record" in rule}
    known |= {"condconv:requests:rate5m": {"route", "code"}}
    return known | {"up": SCRAPED, "ALERTS": {"alertname", "alertstate"}}


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.place for question in QUESTIONS])
def test_what_is_asked_for_exists(question: Question, labels_of):
    assert question.bare_names()
    assert question.bare_names() - set(labels_of) == set()
    for name, selector in question.selectors():
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector)))
        assert used - labels_of[name] == set(), f"{name}{selector}"


def test_prometheus_takes_configuration_and_rules():
    promtool = tool("promtool", hint="apt-get install prometheus")
    assert "SUCCESS" in check(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


def test_prometheus_takes_the_panels_queries(tmp_path):
    promtool = tool("promtool", hint="apt-get install prometheus")
    recorded = [{"record": f"panel_{n}", "expr": q.expression} for n, q in enumerate(panel_questions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    check(promtool, "check", "rules", file)


def test_the_panels_of_detectors_show_what_was_found(tmp_path):
    """Every 15 seconds a detector answers three images, in one of which it finds two objects, and another finds one."""
    promtool = tool("promtool", hint="apt-get install prometheus")
    metrics = Metrics(CollectorRegistry())
    for model, scores in (("m", []), ("m", []), ("m", [0.9, 0.6]), ("n", [0.5])):
        metrics.count_objects(model, scores)
    series = [
        {"series": f"{sample.name}{{{labels}}}", "values": f"0+{sample.value:g}x40"}
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name.startswith("condconv_detection") and not sample.name.endswith("_created")
        for labels in [
            ",".join(f'{k}="{v}"' for k, v in ({"job": "condconv", "instance": "a"} | sample.labels).items())
        ]
    ]
    expected = {
        "Objects per image": {"m": 2 / 3, "n": 1},
        "Images in which nothing is found": {"m": 2 / 3, "n": 0},
        "Mean score": {"m": 0.75, "n": 0.5},
    }
    asked = {question.place.removesuffix(" (A)"): question.expression for question in panel_questions()}
    cases = [
        {
            "expr": f"round({asked[panel]}, 0.0001)",
            "eval_time": "5m",
            "exp_samples": [
                {"labels": f'{{model="{model}"}}', "value": round(value, 4)} for model, value in by_model.items()
            ],
        }
        for panel, by_model in expected.items()
    ]
    file = tmp_path / "panels.yml"
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": cases}]
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": tests}))
    check(promtool, "test", "rules", file)


def test_alerts_fire_when_they_must_and_only_then():
    promtool = tool("promtool", hint="apt-get install prometheus")
    check(promtool, "test", "rules", PROMETHEUS / "tests/alerts.yml")


def test_each_alert_is_tested_both_ways_and_has_a_runbook():
    document = yaml.safe_load((PROMETHEUS / "tests/alerts.yml").read_text())
    cases = [case for test in document["tests"] for case in test.get("alert_rule_test", [])]
    firing = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    headings = {
        re.sub(r"[^a-z0-9-]", "", line.lstrip("# ").lower().replace(" ", "-"))
        for line in (ROOT / "docs/operations.md").read_text().splitlines()
        if line.startswith("#")
    }
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == firing == silent
    for rule in alerts:
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in headings, rule["alert"]


def test_the_dashboard_is_what_its_source_says():
    check(sys.executable, "deploy/grafana/build.py", "--check")


def test_grafanas_own_model_reads_the_dashboard_without_loss():
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="pip install --group check")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason="pip install --group check")
    written = dashboard()
    read = json.loads(encoder.JSONEncoder(sort_keys=True).encode(model.Dashboard.from_json(written)))
    # Only the data source knows these.
    assert set(_lost(written, read)) <= {"definition", "titleFormat"}


def _lost(written: Any, read: Any) -> Iterator[str]:
    """Keys of a document that aren't in a copy."""
    if isinstance(written, dict):
        for key, value in written.items():
            if key in read:
                yield from _lost(value, read[key])
            else:
                yield key
    elif isinstance(written, list):
        for one, other in zip(written, read, strict=True):
            yield from _lost(one, other)


def test_the_dashboards_panels_are_whole():
    panels = dashboard()["panels"]
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    cells: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns = range(place["x"], place["x"] + place["w"])
        cells.update((x, y) for x in columns for y in range(place["y"], place["y"] + place["h"]))
        if panel["type"] != "row":
            assert panel["description"].rstrip(".").strip()
            assert panel["targets"]
    assert max(cells.values()) == 1


def test_the_data_source_is_the_one_that_compose_runs():
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/condconv.yml").read_text())[
        "providers"
    ]
    compose = compose_file()
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert "metrics" in compose["services"]["grafana"]["networks"]
    assert any(v.split(":")[1] == provider["options"]["path"] for v in compose["services"]["grafana"]["volumes"])


@pytest.mark.parametrize(
    "profiles", [(), ("replicas",), ("gpu",), ("tls",), ("ray",), ("replicas", "gpu", "tls", "ray")], ids="+".join
)
def test_compose_takes_its_file(profiles):
    command = [tool("docker-compose", hint="apt-get install docker-compose")]
    check(*command, *(f"--profile={profile}" for profile in profiles), "config", "--quiet")


def compose_file() -> dict[str, Any]:
    """The Compose project, with what its services share filled in."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_no_container_may_swap():
    limits = {name: (one["mem_limit"], one["memswap_limit"]) for name, one in compose_file()["services"].items()}
    assert {name: pair for name, pair in limits.items() if pair[0] != pair[1]} == {}


def test_images_of_others_are_pinned_by_digest():
    images = {one["image"] for one in compose_file()["services"].values() if "condconv-serve" not in one["image"]}
    images |= set(re.findall(r"BASE_IMAGE(?:=|:-)([^\s}]+)", (ROOT / "Dockerfile").read_text()))
    assert len(images) == 5
    assert [image for image in images if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []
    # Compose builds on what the Dockerfile names.
    (base,) = re.findall(r"BASE_IMAGE:-([^}]+)", (ROOT / "docker-compose.yml").read_text())
    assert base in images


def test_ports_are_for_this_machine_unless_asked_otherwise():
    published = [port for one in compose_file()["services"].values() for port in one.get("ports", [])]
    assert published
    assert [p for p in published if not p.startswith(("${BIND:-127.0.0.1}:", "127.0.0.1:"))] == []
    # Whoever reaches Alertmanager may silence it, without a password.
    assert all(p.startswith("127.0.0.1:") for p in compose_file()["services"]["alertmanager"]["ports"])


def test_the_documentation_names_all_variables_and_their_defaults():
    found = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", (ROOT / "docker-compose.yml").read_text()))
    assert found.pop("BASE_IMAGE").startswith("python:")
    found |= {name: "" for name, value in compose_file()["x-condconv"]["environment"].items() if value is None}
    page = (ROOT / "docs/operations.md").read_text()
    table = page.partition("| what | variables (defaults) |")[2].partition("\n\n")[0]
    told = {name: default.strip("`") for name, default in re.findall(r"`([A-Z_]+)`(?: \(([^),]+))?", table)}
    assert told.pop("BASE_IMAGE") == ""
    assert told == found


def test_what_hangs_is_started_again():
    services = {n: one for n, one in compose_file()["services"].items() if "condconv-serve" in one["image"]}
    assert services.pop("secrets")["healthcheck"] == {"disable": True}
    # Ray's proxy has one port for all.
    assert "CONDCONV_METRICS_PORT" not in services["ray"]["environment"]
    assert services
    script = re.search(r"healthcheck\.py (/\S+)", (ROOT / "Dockerfile").read_text())
    assert script is not None
    for one in services.values():
        assert one["init"] is True
        assert one["restart"] == "unless-stopped"
        assert "ray" in one["image"] or one["environment"]["CONDCONV_METRICS_PORT"]
        assert one["healthcheck"]["test"][:4] == ["CMD", "python3", script[1], "--restart-after"]


def test_ray_runs_the_file_for_ray():
    ray = compose_file()["services"]["ray"]
    (command,) = ray["command"]
    mounted = dict(reversed(volume.rsplit(":", 2)[:2]) for volume in ray["volumes"])
    file = re.search(r"serve run (\S+)$", command)
    assert file is not None
    assert mounted[file[1]] == "./deploy/ray/serve.yaml"
    (application,) = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())["applications"]
    for path in (value for value in application["runtime_env"]["env_vars"].values() if value.startswith("/")):
        assert any(path == where or path.startswith(f"{where}/") for where in mounted), path
    # Room in Ray's books for all replicas that it may start.
    asked = application["args"]
    most = asked["autoscaling"]["max_replicas"] * asked["num_cpus"] + asked["ingress_replicas"] * asked["ingress_cpus"]
    default = re.search(r"--num-cpus \$\{RAY_CPUS:-(\d+)\}", command)
    assert default is not None
    assert int(default[1]) >= most
    assert set(ray["build"]["args"]["EXTRAS"].split(",")) >= {"cpu", "ray"}
    # The image has the name that KubeRay's file has.
    service = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
    assert images == {ray["image"]}


def test_secrets_are_kept_in_no_log():
    assert compose_file()["services"]["secrets"]["logging"] == {"driver": "none"}


def test_settings_in_compose_and_the_image_exist():
    names = {f"CONDCONV_{name.upper()}" for name in Settings.model_fields}
    compose = compose_file()
    used = {name for service in compose["services"].values() for name in service.get("environment", {})}
    used |= set(re.findall(r"\b(CONDCONV_\w+)=", (ROOT / "Dockerfile").read_text()))
    assert {name for name in used if name.startswith("CONDCONV_")} - names == set()


def test_patience_at_a_stop_is_longer_than_the_services_own():
    own = Settings.model_fields["shutdown_timeout"].default
    compose = compose_file()
    assert int(compose["services"]["condconv"]["stop_grace_period"].removesuffix("s")) > own


def test_dockerfiles_are_clean():
    check(tool("hadolint", hint="pip install --group check"), "Dockerfile", "tests/deploy/debian.Dockerfile")


def test_no_secret_is_in_the_repository():
    git = tool("git", hint="apt-get install git")
    if not (ROOT / ".git").exists():
        pytest.skip("no repository, so nothing says which files belong to it")
    files = check(git, "ls-files", "-z").rstrip("\0").split("\0")
    hook = tool("detect-secrets-hook", hint="pip install --group check")
    # Checksums and base64 images look like keys to the judges of entropy, and tests hold keys that open nothing.
    judges = ("--disable-plugin", "HexHighEntropyString", "--disable-plugin", "Base64HighEntropyString")
    check(hook, *judges, *(file for file in files if not file.startswith("tests/")))
    ours = re.compile(rb"condconv_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])")
    assert [file for file in files if (ROOT / file).is_file() and ours.search((ROOT / file).read_bytes())] == []


def test_the_build_sees_only_what_it_needs():
    patterns = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in patterns
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    allowed = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    for source in " ".join(copied).split():
        assert any(Path(source) == Path(a) or Path(a) in Path(source).parents for a in allowed), source
