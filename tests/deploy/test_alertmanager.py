"""Who is told of which alert: the configuration with its receivers filled in, by Alertmanager itself."""

from __future__ import annotations

import http.server
import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.debian import ENVIRONMENT, need
from tests.deploy.commands import ROOT, check
from tests.deploy.promql import rules
from tests.free_ports import free_ports

pytestmark = pytest.mark.files

CONFIGURATION = ROOT / "deploy/alertmanager/alertmanager.yml"
SEVERITY = {rule["alert"]: rule["labels"]["severity"] for rule in rules() if "alert" in rule}
RECEIVER = {"page": "pages", "ticket": "tickets", "info": "notes"}


@pytest.fixture(scope="module", autouse=True)
def alertmanager() -> None:
    need({"prometheus-alertmanager": "prometheus-alertmanager", "amtool": "prometheus-alertmanager"})


def filled_in() -> str:
    """The configuration with every example that stands in it taken."""
    return re.sub(r"^    # (?=[ -]|\w+_configs:)", "    ", CONFIGURATION.read_text(), flags=re.MULTILINE)


def test_it_is_valid_as_it_is_and_with_every_example_taken(tmp_path):
    assert "3 receivers" in check("amtool", "check-config", CONFIGURATION)
    file = tmp_path / "alertmanager.yml"
    file.write_text(filled_in())
    receivers = {receiver.pop("name"): set(receiver) for receiver in yaml.safe_load(filled_in())["receivers"]}
    assert receivers == {
        "pages": {"pagerduty_configs", "webhook_configs"},
        "tickets": {"slack_configs", "email_configs"},
        "notes": set(),
    }
    check("amtool", "check-config", file)


def test_secrets_come_from_files_that_git_passes_over():
    text = filled_in()
    keys = re.findall(r"(\w*(?:key|url|password|credentials|token)\w*): (\S+)", text)
    files = [value for key, value in keys if key.endswith("_file")]
    assert len(files) >= 4
    assert all(value.rstrip("}").startswith("/etc/alertmanager/secrets/") for value in files)
    assert {key for key, _ in keys if not key.endswith("_file")} <= {"url"}
    assert "/deploy/alertmanager/secrets/*" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("alert", sorted(SEVERITY))
def test_every_alert_has_who_is_told(alert):
    said = check("amtool", "config", "routes", "test", f"--config.file={CONFIGURATION}", f"alertname={alert}",
                 f"severity={SEVERITY[alert]}", "job=condconv")  # fmt: skip
    assert said.strip() == RECEIVER[SEVERITY[alert]]


def test_alerts_that_keep_others_quiet_exist():
    for rule in yaml.safe_load(CONFIGURATION.read_text())["inhibit_rules"]:
        named = re.findall(r"Condconv\w+", " ".join([*rule["source_matchers"], *rule["target_matchers"]]))
        assert len(named) >= 2
        assert set(named) <= set(SEVERITY)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """Alertmanager's address, and what it sends to those who are told."""
    messages: queue.Queue[dict[str, Any]] = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    document = yaml.safe_load(CONFIGURATION.read_text())
    document["route"]["group_wait"] = "50ms"
    for receiver in document["receivers"]:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        receiver["webhook_configs"] = [{"url": url}]
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(document))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus-alertmanager", f"--config.file={tmp_path / 'alertmanager.yml'}",
             f"--storage.path={tmp_path / 'data'}", "--cluster.listen-address=", f"--web.listen-address={address}"],
            env=ENVIRONMENT, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"http://{address}/-/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield f"http://{address}", messages
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
        thread.join()
        server.server_close()


def test_each_is_told_what_is_theirs_and_not_what_follows_from_it(told):
    address, messages = told
    for alert in ("CondconvGone", "CondconvReplicaDown", "CondconvMemoryHigh", "CondconvBadRequests"):
        labels = {"alertname": alert, "severity": SEVERITY[alert], "job": "condconv", "instance": "a"}
        httpx.post(
            f"{address}/api/v2/alerts", json=[{"labels": labels, "annotations": {"summary": "s", "runbook": "r"}}]
        ).raise_for_status()
        if alert == "CondconvGone":
            first = messages.get(timeout=30)
            assert (first["receiver"], first["groupLabels"]) == ("pages", {"alertname": "CondconvGone"})
    received = [messages.get(timeout=30) for _ in range(2)]
    assert {one["receiver"]: one["groupLabels"]["alertname"] for one in received} == {
        "tickets": "CondconvMemoryHigh",
        "notes": "CondconvBadRequests",
    }
    with pytest.raises(queue.Empty):
        messages.get(timeout=0.5)
    quiet = httpx.get(f"{address}/api/v2/alerts", params={"inhibited": True, "active": False}).json()
    assert [alert["labels"]["alertname"] for alert in quiet] == ["CondconvReplicaDown"]
