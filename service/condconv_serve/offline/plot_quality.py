"""Pictures of an evaluation: whether confidence can be trusted, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.domain import Label
from condconv_serve.routing.picture import Look, draw_cells, draw_scale, dress, new_figure, save, shortened
from condconv_serve.tasks.quality import Quality

MAX_CLASSES = 40
"""Rows of the heat map; more could not be read."""
MAX_NUMBERED = 12
MAX_LABEL = 24


def plot_quality(quality: Quality, labels: Sequence[Label], path: Path, look: Look, *, title: str) -> None:
    """Write the picture of an evaluation to a file.

    Args:
        quality: what was measured.
        labels: of the model, by index.
        path: where to.
        look: of the picture.
        title: what was evaluated.
    """
    path.write_bytes(save(draw_quality(quality, labels, look, title=title), look))


def draw_quality(quality: Quality, labels: Sequence[Label], look: Look, *, title: str) -> Figure:
    """Accuracy by confidence with the number of images below it, and a heat map of confusions beside them."""
    chosen = shown_classes(quality)
    side = min(max(0.26 * len(chosen), 2.6), 9.0)
    figure = new_figure(5.2 + 2.2 + side, max(side + 2.4, 5.0), look)
    grid = figure.add_gridspec(1, 2, width_ratios=(5.2, 2.2 + side))
    calibration, images = grid[0].subgridspec(2, 1, height_ratios=(3, 1)).subplots(sharex=True, squeeze=False).flat
    draw_calibration(calibration, quality, look)
    draw_confidences(images, quality, look)
    confusions, scale = grid[1].subgridspec(2, 1, height_ratios=(side + 0.8, 0.22)).subplots(squeeze=False).flat
    draw_confusions(confusions, quality, labels, chosen, look)
    draw_scale(scale, look)
    scale.set_xlabel("share of the class's images", fontsize=8, color=look.colours.ink)
    top = quality.top1
    lines = f"{title}\ntop-1 {top.value:.1%} ({top.low:.1%} to {top.high:.1%}) on {quality.images} images"
    figure.suptitle(lines, color=look.colours.ink, fontsize=11, parse_math=False)
    return figure


def shown_classes(quality: Quality) -> list[int]:
    """Places in `Quality.classes` of those to draw: all, or those with the most mistakes, by index."""
    mistakes = [0] * len(quality.classes)
    place = {found.index: number for number, found in enumerate(quality.classes)}
    for (truth, predicted), count in quality.confusions.items():
        if truth != predicted:
            mistakes[place[truth]] += count
            mistakes[place[predicted]] += count
    return sorted(np.argsort(-np.array(mistakes), kind="stable")[:MAX_CLASSES].tolist())


def draw_calibration(axis: Any, quality: Quality, look: Look) -> None:
    """Accuracy of the answers by their confidence; where both are alike, confidence means what it says."""
    colours = look.colours
    filled = [found for found in quality.bins if found.images]
    width = 1 / len(quality.bins)
    axis.bar(
        [found.low for found in filled], [found.accuracy for found in filled], width,
        align="edge", color=colours.bar, edgecolor=colours.surface, label="share that is right",
    )  # fmt: skip
    axis.plot([0, 1], [0, 1], "--", color=colours.soft, label="as confident as right")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_ylabel("share that is right")
    axis.set_title(f"Calibration: error (ECE) {quality.calibration_error:.1%}", fontsize=10)
    axis.legend(fontsize=8, loc="upper left")
    dress(axis, look)


def draw_confidences(axis: Any, quality: Quality, look: Look) -> None:
    """How many images there are by confidence: a bin with few says little."""
    counts = [found.images for found in quality.bins]
    axis.bar(
        [found.low for found in quality.bins], counts, 1 / len(counts),
        align="edge", color=look.colours.bar_soft, edgecolor=look.colours.surface,
    )  # fmt: skip
    axis.set_ylabel("images")
    axis.set_xlabel("confidence: probability of the most probable class")
    axis.yaxis.get_major_locator().set_params(integer=True)
    dress(axis, look)


def draw_confusions(axis: Any, quality: Quality, labels: Sequence[Label], chosen: Sequence[int], look: Look) -> None:
    """For each right class (rows) the share of its images that were taken for each class (columns)."""
    place = {quality.classes[number].index: row for row, number in enumerate(chosen)}
    shares = np.zeros((len(chosen), len(chosen)))
    for (truth, predicted), count in quality.confusions.items():
        if truth in place and predicted in place:
            shares[place[truth], place[predicted]] = count
    images = np.array([quality.classes[number].images for number in chosen], float)
    shares = np.divide(shares, images[:, None], out=np.full_like(shares, np.nan), where=images[:, None] > 0)
    names = [shortened(labels[index].label, MAX_LABEL) for index in place]
    draw_cells(axis, shares, look, numbers=len(chosen) <= MAX_NUMBERED)
    axis.set_xticks(range(len(names)), [name.replace("$", r"\$") for name in names], rotation=90)
    axis.set_yticks(
        range(len(names)),
        [f"{name.replace('$', chr(92) + '$')} ({int(n)})" for name, n in zip(names, images, strict=True)],
    )
    axis.tick_params(labelsize=7)
    axis.set_ylabel("right class (images)", fontsize=9)
    axis.set_xlabel("answer", fontsize=9)
    more = f", the {len(chosen)} classes with the most mistakes" if len(chosen) < len(quality.classes) else ""
    axis.set_title(f"Confusions{more}", fontsize=10)
    dress(axis, look)
