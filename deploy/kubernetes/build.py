"""Writes the alerts for Prometheus' operator, made of Prometheus' rules; `--check` only says if they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules"
FILE = HERE / "components" / "monitoring" / "alerts.yaml"
HEAD = """\
# Made of deploy/prometheus/rules by deploy/kubernetes/build.py: change them there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: condconv
  labels:
    app.kubernetes.io/name: condconv
    # kube-prometheus-stack looks only at what has the name of its release, unless told otherwise.
    release: kube-prometheus-stack
spec:
  groups:
"""


def rendered() -> str:
    """The manifest: all groups of all files, as they are written there, comments included."""
    parts = [HEAD]
    for file in sorted(RULES.glob("*.yml")):
        comment, found, groups = file.read_text(encoding="utf-8").partition("groups:\n")
        if not found:
            raise SystemExit(f"{file} must have `groups:` on a line of its own.")
        parts += [f"  {line}" if line.strip() else line for line in (comment + groups).splitlines(keepends=True)]
    text = "".join(parts)
    yaml.safe_load(text)
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if not FILE.exists() or FILE.read_text(encoding="utf-8") != rendered():
            sys.exit(f"{FILE} isn't what the rules say. Run: python {Path(__file__).name}")
    else:
        FILE.write_text(rendered(), encoding="utf-8")
