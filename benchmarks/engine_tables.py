"""The tables of `engine_peers.py`: figures, and goals with the ratios found. `engine_tables.py FILE` prints them.

All ratios are medians over the rounds of what was measured within one round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import contestants
import peak
import report

Figures = dict[str, dict[str, list[float]]]
"""By contestant and figure, a list over the rounds."""
SIZES = contestants.BATCH_SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """How much faster one of ours is to be than the best of some peers.

    Attributes:
        ours: the contestant, without its precision.
        peers: theirs; "openvino-timm" is all whose names begin so.
        precision: of both.
        by: rows per second, each with its best batch; processor time per row of one batch size; or a lone image.
        wanted: the ratio; None: it is only shown.
        batch_size: for processor time.
    """

    ours: str
    peers: tuple[str, ...]
    precision: str
    by: Literal["rate", "cpu", "lone"]
    wanted: float | None = None
    batch_size: int = 0


def goals(flags: list[str]) -> list[Goal]:
    """The goals on a CPU that has these flags."""
    over_static = 1.3 if "avx512f" in flags else 1.2
    found = [
        Goal(ours=ours, peers=(static,), precision=precision, by="cpu", wanted=wanted, batch_size=size)
        for ours, static, precision, at_full in (
            ("ours native", "static native", "f32", 0.92),
            ("ours native", "static native", "bf16", 0.94),
            ("ours native-avx2", "static native-avx2", "f32", 0.92),
            ("ours tensorflow", "static tensorflow", "f32", None),
            ("ours tensorflow", "static tensorflow", "bf16", None),
            ("ours openvino", "static openvino", "f32", None),
            ("ours openvino", "static openvino", "bf16", None),
        )
        for size, wanted in zip(SIZES, (at_full and 0.85, at_full, at_full), strict=True)
    ]
    for precision, over_present, over_timm in (("f32", 1.5, 1.7), ("bf16", 1.7, 2.1)):
        for peers, wanted in (
            (("ours openvino", "ours tensorflow"), over_present),
            (("openvino-timm",), over_timm),
            (("static openvino",), over_static),
            (("onnxruntime",), None),
            (("timm inductor",), None),
            (("official",), None),
        ):
            found.append(Goal(ours="ours native", peers=peers, precision=precision, by="rate", wanted=wanted))
    found.append(Goal(ours="ours native-avx2", peers=("static openvino-avx2",), precision="f32", by="rate", wanted=1.2))
    for precision in ("f32", "bf16"):
        for peer, wanted in (("ours openvino", 1.0), ("static openvino", 1 / 1.15)):
            found.append(Goal(ours="ours native", peers=(peer,), precision=precision, by="lone", wanted=wanted))
    return found


ROOFLINE = {"ours native f32": 0.80, "ours native bf16": 0.68}
"""How much of the roofline these are to reach."""


def render(document: dict[str, Any]) -> str:
    """All tables."""
    figures: Figures = document["figures"]
    shares = {name: share for name in figures if (share := _share(document, name)) is not None}
    return "\n\n".join([_figures_table(document, shares), _goals_table(document, shares)])


def _figures_table(document: dict[str, Any], shares: dict[str, float]) -> str:
    rows = []
    for name, found in document["figures"].items():
        rates = [f"{median(found[f'b{size}']):.0f}" for size in SIZES]
        cpu = [f"{median(found[f'b{size}_cpu_ms']):.1f}" for size in SIZES]
        share = f"{shares[name]:.0%}" if name in shares else ""
        off = "" if name.startswith("static") else f"{document['difference'][name]:.0e}"
        rows.append([name, *rates, *cpu, f"{median(found['lone_ms']):.1f}", share, off])
    header = [
        "contestant",
        *(f"batch {size}: rows/s" for size in SIZES),
        *(f"{size}: CPU ms/row" for size in SIZES),
        "lone ms",
        "of roofline",
        "logits off",
    ]
    return report.table(header, rows)


def _goals_table(document: dict[str, Any], shares: dict[str, float]) -> str:
    figures, rows = document["figures"], []
    for goal in goals(document["machine"]["flags"]):
        ratio = _ratio(figures, goal)
        if ratio is not None:
            rows.append(_row(_name(goal), ratio, goal.wanted))
    for name, wanted in ROOFLINE.items():
        if name in shares:
            rows.append(_row(f"{name}: share of the roofline", shares[name], wanted))
    native, tensorflow = (document["difference"].get(f"ours {engine} bf16") for engine in ("native", "tensorflow"))
    if native is not None and tensorflow is not None:
        verdict = report.verdict(native <= tensorflow)
        rows.append(["logits off, native bf16 over tensorflow bf16", f"{native / tensorflow:.2f}", "<= 1", verdict])
    return report.table(["ratio", "found", "wanted", ""], rows)


def _row(name: str, found: float, wanted: float | None) -> list[str]:
    if wanted is None:
        return [name, f"{found:.2f}", "", ""]
    return [name, f"{found:.2f}", f"{wanted:.2f}", report.verdict(found >= wanted)]


def _name(goal: Goal) -> str:
    how = {"rate": "rows/s, best batches", "cpu": f"CPU time, batch {goal.batch_size}", "lone": "lone image"}[goal.by]
    return f"{goal.ours} over {' or '.join(goal.peers)} {goal.precision} ({how})"


def _ratio(figures: Figures, goal: Goal) -> float | None:
    """How many times faster ours is; None if one of the two is missing."""
    mine = _select(figures, (goal.ours,), goal.precision)
    theirs = _select(figures, goal.peers, goal.precision)
    if not mine or not theirs:
        return None
    if goal.by == "rate":
        fast, slow = (_best(figures, names, max, [f"b{size}" for size in SIZES]) for names in (mine, theirs))
    else:
        figure = "lone_ms" if goal.by == "lone" else f"b{goal.batch_size}_cpu_ms"
        slow, fast = (_best(figures, names, min, [figure]) for names in (mine, theirs))
    return median(a / b for a, b in zip(fast, slow, strict=True))


def _select(figures: Figures, names: tuple[str, ...], precision: str) -> list[str]:
    return [n for n in figures if n.endswith(f" {precision}") and any(n.startswith(f"{name} ") for name in names)]


def _best(figures: Figures, names: list[str], best: Callable[..., list[float]], columns: list[str]) -> list[float]:
    """The rounds of the best of some contestants and figures."""
    return best((figures[name][column] for name in names for column in columns), key=median)


def _share(document: dict[str, Any], name: str) -> float | None:
    """How much of the roofline a contestant reaches with its best batch; None if that isn't known."""
    multiply_adds, precision = document["multiply_adds"][name], name.split()[-1]
    limit = peak.best(document["peaks"], precision, isa="avx2" if "-avx2" in name else None)
    if multiply_adds is None or limit is None:
        return None
    cpu = min(median(document["figures"][name][f"b{size}_cpu_ms"]) for size in SIZES) / 1e3
    return peak.share(multiply_adds, cpu, limit)


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())))
