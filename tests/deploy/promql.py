"""What dashboard and rules ask Prometheus, and Prometheus' answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*", "$block": ".*"}
_SELECTOR = re.compile(r"(?<![\w:$])([a-zA-Z_:][\w:]*)(\{[^}]*\})")
_STRING = re.compile(r'"[^"]*"')


@dataclass(frozen=True, slots=True)
class Question:
    """A PromQL expression, and where it stands."""

    place: str
    expression: str

    def selectors(self) -> list[tuple[str, str]]:
        """Names of metrics with the labels they are selected by, as `{...}`."""
        return [(name, labels) for name, labels in _SELECTOR.findall(self.expression) if name not in ("by", "on")]

    def bare_names(self) -> set[str]:
        """Names of metrics and recorded series, those without labels included."""
        text = _STRING.sub("", self.expression)
        text = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", "", text)
        text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
        return set(
            re.findall(r"\b(?:condconv|process|python|up|ALERTS)\b[\w:]*|\b(?:condconv|process|python)_\w+", text)
        )


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    return json.loads((ROOT / "deploy/grafana/dashboards/condconv.json").read_text())


def panel_questions() -> Iterator[Question]:
    """Each query of each panel, with values for the dashboard's variables."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in _VARIABLES.items():
                expression = expression.replace(variable, value)
            yield Question(f"{panel['title']} ({target['refId']})", expression)


def rules(directory: Path = ROOT / "deploy/prometheus") -> list[dict[str, Any]]:
    """All rules."""
    files = sorted((directory / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alert_questions(directory: Path = ROOT / "deploy/prometheus") -> list[Question]:
    """The alerts' conditions."""
    return [Question(rule["alert"], rule["expr"]) for rule in rules(directory) if "alert" in rule]


def record_questions(directory: Path = ROOT / "deploy/prometheus") -> list[Question]:
    """What is recorded."""
    return [Question(rule["record"], rule["expr"]) for rule in rules(directory) if "record" in rule]


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples now: a list of `{"metric": labels, "value": number}`."""
        answer = self._client.post("/api/v1/query", data={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        data = answer.json()["data"]
        samples = [data["result"]] if data["resultType"] == "scalar" else [s["value"] for s in data["result"]]
        metrics = [{}] if data["resultType"] == "scalar" else [s["metric"] for s in data["result"]]
        return [
            {"metric": metric, "value": float(value)}
            for metric, (_, value) in zip(metrics, samples, strict=True)
            if not math.isnan(float(value))
        ]

    def value(self, expression: str) -> float:
        """The only sample, or 0 if there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0]["value"] if samples else 0.0

    def up(self) -> set[str]:
        """Addresses of the replicas that are scraped well."""
        return {sample["metric"]["instance"] for sample in self.query('up{job="condconv"} == 1')}

    def firing(self) -> set[str]:
        """Names of alerts that fire."""
        samples = self.query('ALERTS{alertstate="firing"}')
        return {sample["metric"]["alertname"] for sample in samples}
