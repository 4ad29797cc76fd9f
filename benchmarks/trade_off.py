"""Does CondConv pay? Trains static networks and their CondConv twins alike, and plots accuracy against cost.

Each network is trained once per seed with the same images, epochs, batches, learning rates and augmentation as its
twin. The test images choose nothing: classifiers are judged after the last epoch, detectors after the one that
validation photos chose. Figures are written after every training, and each epoch is saved: run the same command again,
and it goes on.

    python benchmarks/trade_off.py DATA --network mobilenet-v1:0.25 --network mobilenet-v1:0.5=WEIGHTS.h5 --seeds 5
    python benchmarks/trade_off.py DATA --task detection --network mobilenet-v2=WEIGHTS.h5 --experts 4

For classifiers DATA has the folders `train` and `test`, with a folder per class; for detectors `train.json`, `val.json`
and `test.json` in COCO's format. A network is `name:width`, from scratch, or `name:width=file` with published weights,
which its twin starts from, too (upcycled).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import report

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Student's t for 95 %, by degrees of freedom; beyond, the normal distribution's.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
_NORMAL = 1.96
_POINT = ("network", "width", "weights", "experts", "image_size", "epochs", "batch_size", "learning_rate", "classes")
"""What the seeds of a point have in common."""
SCORES = {"classification": "accuracy", "detection": "AP50"}
"""How good a network is, by its task."""
Figures = dict[str, Any]
Interval = tuple[float, float, float]


def accuracy_interval(accuracies: Sequence[float], *, images: int) -> Interval:
    """Mean and 95 % interval of the accuracies of some seeds.

    Seeds differ, and so would other test images; both count. With one seed only the images do.

    Args:
        accuracies: one per seed.
        images: that each was judged on, the same ones.

    Returns:
        Mean, lower and upper end.
    """
    mean = fmean(accuracies)
    z = _NORMAL**2 / images
    centre, spread = mean + z / 2, math.sqrt(z * mean * (1 - mean) + z**2 / 4)
    low, high = (centre - spread) / (1 + z), (centre + spread) / (1 + z)  # Wilson's
    if len(accuracies) > 1:
        half = _half(accuracies)
        low, high = mean - math.hypot(mean - low, half), mean + math.hypot(high - mean, half)
    return mean, max(0.0, low), min(1.0, high)


def gain_interval(gains: Sequence[float]) -> Interval:
    """Mean and Student's 95 % interval of the gains of some seeds, two at least, on the same test images."""
    mean, half = fmean(gains), _half(gains)
    return mean, mean - half, mean + half


def precision_interval(precisions: Sequence[float]) -> Interval:
    """Mean and Student's 95 % interval of the average precisions of some seeds; of one seed there is none."""
    mean = fmean(precisions)
    half = _half(precisions) if len(precisions) > 1 else 0.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def points_of(runs: Sequence[Figures]) -> list[Figures]:
    """Runs that differ only in their seeds, taken together: cost, mean accuracy and its interval."""
    groups: dict[tuple[Any, ...], list[Figures]] = {}
    for run in runs:
        groups.setdefault(tuple(run["settings"][key] for key in _POINT), []).append(run)
    points = []
    for settings, group in groups.items():
        scores = [_score(run) for run in group]
        detectors = "ap50" in group[0]
        mean, low, high = (
            precision_interval(scores) if detectors else accuracy_interval(scores, images=group[0]["images"])
        )
        points.append(
            {
                **dict(zip(_POINT, settings, strict=True)),
                "seeds": sorted(run["settings"]["seed"] for run in group),
                "score": mean,
                "low": low,
                "high": high,
                **{key: group[0][key] for key in ("images", "parameters", "multiply_adds")},
                "seconds": fmean(run["seconds"] for run in group),
            }
        )
    return points


def gains_of(runs: Sequence[Figures]) -> list[Figures]:
    """By how much each CondConv network is better than its static twin of the same seed; two seeds at least."""
    by_settings = {_key(run["settings"]): run for run in runs}
    groups: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        static = by_settings.get(_key({**run["settings"], "experts": 0}))
        if run["settings"]["experts"] and static is not None:
            point = tuple(run["settings"][key] for key in _POINT)
            groups.setdefault(point, []).append(_score(run) - _score(static))
    gains = []
    for settings, differences in groups.items():
        if len(differences) > 1:
            mean, low, high = gain_interval(differences)
            found = {"pairs": len(differences), "gain": mean, "low": low, "high": high}
            gains.append({**dict(zip(_POINT, settings, strict=True)), **found})
    return gains


def plot(points: Sequence[Figures], file: Path, *, title: str, score: str) -> None:
    """Draw a score against multiply-adds, with intervals: a line for static networks and one for their twins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    lines: dict[tuple[str, bool, int], list[Figures]] = {}
    for point in points:
        lines.setdefault((point["network"], point["weights"] is not None, point["experts"]), []).append(point)
    colours = {network: f"C{number}" for number, network in enumerate(dict.fromkeys(line[:2] for line in lines))}
    for (network, pretrained, experts), line in sorted(lines.items()):
        line = sorted(line, key=lambda point: point["multiply_adds"])
        means = [100 * point["score"] for point in line]
        below = [100 * (point["score"] - point["low"]) for point in line]
        above = [100 * (point["high"] - point["score"]) for point in line]
        start = "real weights" if pretrained else "from scratch"
        axes.errorbar(
            [point["multiply_adds"] / 1e6 for point in line],
            means,
            yerr=[below, above],
            color=colours[network, pretrained],
            linestyle="-" if experts else "--",
            marker="o" if experts else "s",
            markersize=5,
            capsize=3,
            label=f"{network}, {f'{experts} experts' if experts else 'static'}, {start}",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("multiply-adds (millions)")
    axes.set_ylabel(f"test {score} (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--network", action="append", required=True, metavar="NAME:WIDTH[=FILE]")
    parser.add_argument("--task", choices=SCORES, default="classification")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--classes", type=int, help="only the first so many")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no training after so many")
    parser.add_argument("--work", type=Path, default=Path("trade-off"), help="for what is unfinished")
    parser.add_argument("--name", help="of the files in benchmarks/results")
    options = parser.parse_args()
    options.name = options.name or f"trade_off_{options.task}"
    end = time.monotonic() + 60 * options.minutes
    options.work.mkdir(parents=True, exist_ok=True)
    file = report.RESULTS / f"{options.name}.json"
    runs: list[Figures] = json.loads(file.read_text())["runs"] if file.exists() else []
    done = {_key(run["settings"]) for run in runs}
    if options.task == "detection":
        from trade_off_detection import train
    else:
        from trade_off_training import train

    for run, weights in _planned(options):
        if _key(asdict(run)) in done:
            continue
        if time.monotonic() > end:
            print("The time is over; run the same command to go on.")
            break
        print(run.title, flush=True)
        found = train(run, options.data, options.work, weights=weights)
        runs.append({"settings": asdict(run), **found})
        print(
            f"  {_score(runs[-1]):.1%} {SCORES[options.task]} on {found['images']} test images in {found['seconds']} s",
            flush=True,
        )
        _save(options, runs)
    _save(options, runs)
    _print(points_of(runs), gains_of(runs), score=SCORES[options.task])


def _planned(options: argparse.Namespace) -> Iterator[tuple[Any, Path | None]]:
    """All runs, seed by seed, so that whoever stops has as many of each network."""
    from trade_off_training import TWINS, Run

    for seed in range(options.seeds):
        for text in options.network:
            named, _, source = text.partition("=")
            network, _, width = named.partition(":")
            if network not in TWINS:
                raise SystemExit(f"{network} is none of {', '.join(TWINS)}.")
            if source and not Path(source).is_file():
                raise SystemExit(f"{source} is no file.")
            for experts in (0, options.experts):
                run = Run(
                    network=network,
                    width=float(width or 1),
                    weights=Path(source).name if source else None,
                    experts=experts,
                    seed=seed,
                    image_size=options.image_size,
                    epochs=options.epochs,
                    batch_size=options.batch_size,
                    learning_rate=options.learning_rate,
                    classes=options.classes,
                )
                yield run, Path(source) if source else None


def _save(options: argparse.Namespace, runs: Sequence[Figures]) -> None:
    if not runs:
        return
    points = points_of(runs)
    report.save(
        options.name,
        {
            "task": options.task,
            "data": options.data.resolve().name,
            "machine": report.machine(("tensorflow-cpu", "keras", "numpy")),
            "points": points,
            "gains": gains_of(runs),
            "runs": list(runs),
        },
    )
    title = f"{options.data.resolve().name}: {points[0]['images']} test images, {points[0]['epochs']} epochs"
    plot(points, report.RESULTS / f"{options.name}.png", title=title, score=SCORES[options.task])


def _print(points: Sequence[Figures], gains: Sequence[Figures], *, score: str) -> None:
    rows = [
        (
            f"{point['network']} {point['width']:g}, {'real weights' if point['weights'] else 'scratch'}",
            str(point["experts"] or "-"),
            f"{point['multiply_adds'] / 1e6:.1f}",
            f"{point['parameters'] / 1e6:.2f}",
            f"{point['score']:.1%} ({point['low']:.1%} to {point['high']:.1%})",
            str(len(point["seeds"])),
            f"{point['seconds']:.0f}",
        )
        for point in points
    ]
    print(report.table(("network", "experts", "M multiply-adds", "M parameters", score, "seeds", "s"), rows))
    for gain in gains:
        name = f"{gain['network']} {gain['width']:g}, {'real weights' if gain['weights'] else 'scratch'}"
        print(f"{name}: CondConv gains {gain['gain']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%})")


def _score(run: Mapping[str, Any]) -> float:
    """Of a classifier its accuracy, of a detector its AP50."""
    return float(run["ap50"] if "ap50" in run else run["right"] / run["images"])


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _half(values: Sequence[float]) -> float:
    """Half of Student's interval of a mean."""
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else _NORMAL
    return t * stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
