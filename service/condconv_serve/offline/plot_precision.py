"""A picture of how good a detector is: what share of its boxes is right if it is to find a share of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.domain import Label
from condconv_serve.routing.picture import Look, dress, new_figure, save, shortened
from condconv_serve.tasks.average_precision import DetectionQuality

MAX_CURVES = 12
"""Classes that are drawn, those with the most objects; more could not be told apart."""
MAX_BARS = 40
MAX_LABEL = 24
_STYLES = ("-", "--")


def plot_precision(quality: DetectionQuality, labels: Sequence[Label], path: Path, look: Look, *, title: str) -> None:
    """Write the picture of a detector's evaluation to a file.

    Args:
        quality: what was measured.
        labels: of the model, by index.
        path: where to.
        look: of the picture.
        title: what was evaluated.
    """
    path.write_bytes(save(draw_precision(quality, labels, look, title=title), look))


def draw_precision(quality: DetectionQuality, labels: Sequence[Label], look: Look, *, title: str) -> Figure:
    """Precision by recall for each class where boxes overlap by half, and AP50 and AP by class beside it."""
    tested = [one for one in quality.classes if one.objects]
    listed = sorted(tested, key=lambda one: (-one.objects, one.index))[:MAX_BARS]
    height = max(4.4, 1.8 + 0.3 * len(listed))
    figure = new_figure(11.0, height, look)
    curves, bars = figure.subplots(1, 2)
    recalls, colours = np.linspace(0, 1, 101), look.colours.lines
    for number, one in enumerate(listed[:MAX_CURVES]):
        name = shortened(labels[one.index].label, MAX_LABEL).replace("$", r"\$")
        curves.plot(
            recalls, one.curve, _STYLES[number // len(colours)],
            color=colours[number % len(colours)], label=f"{name}: {one.ap50:.1%}",
        )  # fmt: skip
    curves.set_xlim(0, 1)
    curves.set_ylim(0, 1.02)
    curves.set_xlabel("recall: share of the objects that are found")
    curves.set_ylabel("precision: share of the boxes that are right")
    more = f", the {MAX_CURVES} classes with the most objects" if len(tested) > MAX_CURVES else ""
    curves.set_title(f"Boxes that overlap an object by half{more}", fontsize=10)
    curves.legend(fontsize=8, loc="lower left")
    dress(curves, look)
    places = np.arange(len(listed))
    bars.barh(places - 0.2, [one.ap50 or 0.0 for one in listed], 0.4, color=look.colours.bar, label="AP50")
    bars.barh(places + 0.2, [one.ap or 0.0 for one in listed], 0.4, color=look.colours.bar_soft, label="AP")
    names = [shortened(labels[one.index].label, MAX_LABEL).replace("$", r"\$") for one in listed]
    bars.set_yticks(places, [f"{name} ({one.objects})" for name, one in zip(names, listed, strict=True)], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_title("By class (objects)", fontsize=10)
    bars.legend(fontsize=8, loc="lower right")
    dress(bars, look)
    lines = f"{title}\nAP50 {quality.ap50:.1%}, AP {quality.ap:.1%} on {quality.images} photos"
    figure.suptitle(lines, color=look.colours.ink, fontsize=11, parse_math=False)
    return figure
