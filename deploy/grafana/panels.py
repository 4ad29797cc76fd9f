"""The kinds of panels, as Grafana has them in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${source}"}

Panel = dict[str, Any]
Query = tuple[str, str]
"""PromQL, and the legend of its series."""


def panel(kind: str, title: str, question: str, queries: Sequence[Query], *, unit: str, w: int, h: int) -> Panel:
    """What all panels have; `question` is what it answers."""
    return {
        "type": kind,
        "title": title,
        "description": question,
        "datasource": SOURCE,
        "gridPos": {"w": w, "h": h},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(queries)
        ],
    }


def stat(
    title: str, question: str, expression: str, *, unit: str = "short", steps: Sequence[tuple[float, str]]
) -> Panel:
    """One number, coloured from each step's value on."""
    made = panel("stat", title, question, [(expression, title)], unit=unit, w=4, h=4)
    made["fieldConfig"]["defaults"]["thresholds"] = {
        "mode": "absolute",
        "steps": [{"value": None if n == 0 else value, "color": colour} for n, (value, colour) in enumerate(steps)],
    }
    made["options"] = {
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return made


def lines(
    title: str,
    question: str,
    *queries: Query,
    unit: str = "short",
    w: int = 8,
    stacked: bool = False,
    limit: str | None = None,
    colours: dict[str, str] | None = None,
) -> Panel:
    """Lines over time; the series whose legend is `limit` is drawn as a dashed line that others are measured by."""
    made = panel("timeseries", title, question, queries, unit=unit, w=w, h=8)
    made["fieldConfig"]["defaults"]["custom"] = {
        "fillOpacity": 30 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": 60_000,
        "stacking": {"mode": "normal" if stacked else "none"},
    }
    styles: dict[str, list[dict[str, Any]]] = {}
    if limit is not None:
        styles[f"^{limit}"] = [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        ]
    for pattern, colour in (colours or {}).items():
        styles[pattern] = [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]
    made["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byRegexp", "options": f"/{pattern}/"}, "properties": properties}
        for pattern, properties in styles.items()
    ]
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def heatmap(title: str, question: str, expression: str, *, unit: str, w: int = 8) -> Panel:
    """A histogram over time."""
    made = panel("heatmap", title, question, [(expression, "{{le}}")], unit=unit, w=w, h=8)
    made["targets"][0]["format"] = "heatmap"
    made["options"] = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Turbo", "steps": 64},
        "yAxis": {"unit": unit},
        "tooltip": {"mode": "single", "yHistogram": True},
    }
    return made


def table(title: str, question: str, expression: str, *, columns: Sequence[str], w: int = 12) -> Panel:
    """The labels of the series that there are now."""
    made = panel("table", title, question, [(expression, "")], unit="short", w=w, h=8)
    made["targets"][0] |= {"format": "table", "instant": True}
    made["transformations"] = [
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate([*columns, "Value"])},
                "renameByName": {"Value": "replicas"},
            },
        }
    ]
    return made
