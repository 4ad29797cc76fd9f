"""Pictures of routing weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.domain import RoutingTrace
from condconv_serve.errors import InvalidParameter

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MAX_COLUMNS = 4
MAX_NUMBERED_EXPERTS = 16
MAX_NUMBERS = 2000
"""With more weights than this they are drawn without numbers."""
MAX_PIXELS = 4000
"""Longest side of a picture."""
MAX_TITLE = 40


def check_plot_path(path: Path) -> None:
    """Check early that a picture can be written there.

    Raises:
        InvalidParameter: unknown kind of file, or no such directory.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise InvalidParameter(f"{path}: a plot is written as {', '.join(PLOT_SUFFIXES)}.")
    if not path.parent.is_dir():
        raise InvalidParameter(f"{path}: there is no directory {path.parent}.")


def plot_routing(traces: Sequence[tuple[str, RoutingTrace]], path: Path) -> None:
    """Draw one heat map per image, blocks down and experts across, and write them to one file.

    Args:
        traces: a title and the routing weights of each image, at least one.
        path: where to; its suffix says what kind of picture.

    Raises:
        InvalidParameter: unknown kind of file, or a static network's empty routing.
    """
    check_plot_path(path)
    path.write_bytes(draw_routing(traces, path.suffix.lower().removeprefix(".")))


def draw_routing(traces: Sequence[tuple[str, RoutingTrace]], kind: str) -> bytes:
    """Draw one heat map per image, blocks down and experts across.

    Args:
        traces: a title and the routing weights of each image, at least one.
        kind: of picture: png, svg or pdf.

    Raises:
        InvalidParameter: a static network's empty routing.
    """
    if not traces[0][1].layout:
        raise InvalidParameter("A static network has no routing to plot.")
    columns = min(len(traces), MAX_COLUMNS)
    rows = -(-len(traces) // columns)
    blocks, experts = traces[0][1].weights.shape
    numbers = experts <= MAX_NUMBERED_EXPERTS and len(traces) * blocks * experts <= MAX_NUMBERS
    width, height = (0.5, 0.34) if numbers else (0.16, 0.16)
    size = (1.6 + columns * (1.2 + max(width * experts, 1.0)), rows * (1.2 + height * blocks))
    figure = Figure(figsize=size, layout="constrained", dpi=min(110, MAX_PIXELS / max(size)))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (title, trace) in zip(axes.flat, traces, strict=False):
        weights = trace.layout.blanked(trace.weights)
        axis.imshow(weights, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_title(shortened(title), fontsize=9, parse_math=False)
        axis.set_xticks(range(0, experts, 1 if experts <= MAX_NUMBERED_EXPERTS else 8))
        axis.set_yticks(range(blocks), trace.layout.blocks)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("expert", fontsize=8)
        for (block, expert), weight in np.ndenumerate(weights) if numbers else ():
            if np.isnan(weight):
                continue
            shade = "black" if weight > 0.6 else "white"
            axis.text(expert, block, f"{weight:.2f}", ha="center", va="center", fontsize=6.5, color=shade)
    for axis in axes.flat[len(traces) :]:
        axis.axis("off")
    figure.colorbar(axes.flat[0].images[0], ax=axes, label="routing weight", shrink=0.8)
    return save(figure, kind)


def save(figure: Figure, kind: str) -> bytes:
    """A figure as a file of that kind, the same bytes for the same figure as far as matplotlib allows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"png": {"Software": None}, "svg": {"Date": None}}.get(kind))
    return buffer.getvalue()


def shortened(title: str) -> str:
    """A title without characters that fonts can't draw, and not too wide."""
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in title.split("\n")]
    return "\n".join(line if len(line) <= MAX_TITLE else f"{line[: MAX_TITLE - 1]}…" for line in lines)
