"""Writes the Grafana dashboard, `dashboards/condconv.json`; `--check` only says whether it is up to date."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from panels import SOURCE, Panel
from rows import ROWS

FILE = Path(__file__).parent / "dashboards" / "condconv.json"
WIDTH = 24


def variable(name: str, label: str, expression: str) -> dict[str, Any]:
    """A choice among a label's values."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": expression, "refId": name},
        "definition": expression,
        "refresh": 2,
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def placed(rows: dict[str, list[Panel]]) -> list[Panel]:
    """Panels from left to right, under the headings of their rows."""
    panels: list[Panel] = []
    y = 0
    for title, members in rows.items():
        panels.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        x, y, height = 0, y + 1, 0
        for member in members:
            size = member["gridPos"]
            if x + size["w"] > WIDTH:
                x, y, height = 0, y + height, 0
            panels.append(member | {"gridPos": {"x": x, "y": y, **size}})
            x, height = x + size["w"], max(height, size["h"])
        y += height
    return [made | {"id": number} for number, made in enumerate(panels, start=1)]


def dashboard() -> dict[str, Any]:
    """The whole of it."""
    return {
        "uid": "condconv",
        "title": "condconv-serve",
        "description": "Traffic, time, batches, models and experts of condconv-serve.",
        "tags": ["condconv"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"type": "datasource", "name": "source", "label": "Data source", "query": "prometheus", "current": {}},
                variable("instance", "Replica", 'label_values(condconv_ready{job="condconv"}, instance)'),
                variable("model", "Model", 'label_values(condconv_model_info{job="condconv"}, model)'),
                variable("block", "Block", 'label_values(condconv_routing_weight_count{model=~"$model"}, block)'),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertname=~"Condconv.+",alertstate="firing"}',
                    "titleFormat": "{{alertname}}",
                },
                {
                    "name": "Swaps",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": 'sum by (model, outcome) (changes(condconv_model_loads_total{job="condconv"}[1m])) > 0',
                    "titleFormat": "{{model}} {{outcome}}",
                },
            ]
        },
        "panels": placed(ROWS),
    }


if __name__ == "__main__":
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" not in sys.argv:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        sys.exit(f"{FILE.name} is out of date: python deploy/grafana/build.py")
