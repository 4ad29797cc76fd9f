"""A copy of Prometheus' configuration in which time passes faster: every duration is divided by the same number.

Alerts wait for minutes and look back for hours. Dividing the interval of scraping as well leaves as many samples in
each window as there are in real life, so that nothing but the waiting is shortened.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# In brackets or after a key or `offset`, so that names such as ratio_rate5m stay.
_DURATION = re.compile(r"(\[|\b(?:for|\w*interval): |\boffset )(\d+)(ms|s|m|h|d)\b")


def write_faster_copy(source: Path, target: Path, *, by: int) -> None:
    """Copy the directory `source` to `target`, with all durations divided by `by`."""
    shutil.copytree(source, target)
    for file in target.rglob("*.yml"):
        file.write_text(_DURATION.sub(lambda found: found[1] + _divided(found, by), file.read_text()))


def _divided(found: re.Match[str], by: int) -> str:
    return f"{round(int(found[2]) * _SECONDS[found[3]] / by * 1000)}ms"
