"""Pictures of routing weights by class, like the figures of the CondConv paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.routing.by_class import RoutingByClass
from condconv_serve.routing.picture import Look, draw_cells, draw_scale, dress, new_figure, printable, save, shortened
from condconv_serve.routing.tally import EDGES

MAX_CLASSES = 100
"""Rows of a heat map; more could not be read."""
MAX_LABEL = 28
MAX_NUMBERED_EXPERTS = 8
MAX_NUMBERS = 1000
"""With more cells than this, of all blocks together, heat maps have no numbers: that would take a minute."""
_ROW, _HEAD = 0.165, 0.75
_MAX_WIDTH, _MAX_HEIGHT = 13.0, 36.0
_DEPTHS = 3


def plot_by_class(found: RoutingByClass, path: Path, look: Look) -> None:
    """Write all pictures of a data set's routing to one file."""
    path.write_bytes(save(draw_by_class(found, look), look))


def draw_by_class(found: RoutingByClass, look: Look) -> Figure:
    """How much classes explain by depth, and a heat map of classes and experts for each block."""
    chosen, all_blocks = found.chosen(MAX_CLASSES), len(found.layout.blocks)
    names, width, height = map_size(found)
    columns = 1 if look.narrow else max(1, min(all_blocks, int((_MAX_WIDTH - names) / width)))
    blocks = depths_of(all_blocks, max(columns, int(_MAX_HEIGHT / height) * columns))
    rows, head = -(-len(blocks) // columns), 5.6 if look.narrow else 2.9
    size = max(names + columns * width, 4.0 if look.narrow else 8.5), rows * height + head + 1.2
    figure = new_figure(*size, look)
    grid = figure.add_gridspec(3, 1, height_ratios=(head, rows * height, 0.16))
    split = {"nrows": 2, "ncols": 1} if look.narrow else {"nrows": 1, "ncols": 2, "width_ratios": (2, 1)}
    above = grid[0].subgridspec(**split)
    draw_depth(figure.add_subplot(above[0]), found, look)
    draw_distribution(figure.add_subplot(above[1]), found, depths_of(all_blocks), look)
    axes = grid[1].subgridspec(rows, columns).subplots(squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place < len(blocks):
            draw_map(axis, found, blocks[place], look, named=place % columns == 0)
        else:
            axis.axis("off")
    draw_scale(figure.add_subplot(grid[2]), look)
    figure.suptitle(title_of(found, len(chosen), len(blocks)), color=look.colours.ink, fontsize=11, parse_math=False)
    return figure


def title_of(found: RoutingByClass, classes: int, blocks: int) -> str:
    """What the picture shows, and what it leaves out."""
    lines = [f"Routing of {found.overall.count} images of {len(found.names)} classes"]
    if classes < len(found.names):
        lines.append(f"maps: the {classes} classes with the most images")
    if blocks < len(found.layout.blocks):
        lines.append(f"maps: {blocks} of {len(found.layout.blocks)} blocks")
    return "\n".join(lines)


def map_size(found: RoutingByClass) -> tuple[float, float, float]:
    """Inches: width of the classes' names, width of a block's experts, and height of a block's heat map."""
    experts, names = found.mean.shape[2], labels_of(found, found.chosen(MAX_CLASSES))
    cell = 0.4 if experts <= MAX_NUMBERED_EXPERTS else 0.2 if experts <= 16 else 0.1
    return 0.075 * max(map(len, names)) + 0.3, max(cell * experts + 0.2, 1.1), (len(names) + 1) * _ROW + _HEAD


def depths_of(blocks: int, most: int = _DEPTHS) -> list[int]:
    """Blocks at even distances, the first and the last among them; all if there are no more than `most`."""
    return sorted({int(place) for place in np.linspace(0, blocks - 1, min(most, blocks)).round()})


def labels_of(found: RoutingByClass, chosen: list[int]) -> list[str]:
    """Names of rows: `all images`, then each class with its number of images."""
    names = (f"{shortened(found.names[place], MAX_LABEL - 6)} ({found.images[place]})" for place in chosen)
    return ["all images", *names]


def draw_map(axis: Any, found: RoutingByClass, block: int, look: Look, *, named: bool = True) -> None:
    """Draw mean weights of one block: classes down, below all images, and experts across."""
    chosen, experts = found.chosen(MAX_CLASSES), found.layout.experts[block]
    means = np.stack([found.overall.mean[block], *found.mean[chosen, block]])[:, :experts]
    # An empty row parts all images from the classes.
    values = np.insert(means, 1, np.nan, axis=0)
    numbers = experts <= MAX_NUMBERED_EXPERTS and means.size * len(found.layout.blocks) <= MAX_NUMBERS
    draw_cells(axis, values, look, numbers=numbers)
    axis.set_xticks(range(0, experts, 1 if experts <= 16 else 8))
    if named:
        axis.set_yticks([0, *range(2, len(values))], labels_of(found, chosen), parse_math=False)
    else:
        axis.set_yticks([])
    axis.tick_params(labelsize=7, length=2)
    axis.set_xlabel("expert", fontsize=8)
    axis.set_title(printable(found.layout.blocks[block]), fontsize=10, parse_math=False)
    dress(axis, look)


def draw_distribution(axis: Any, found: RoutingByClass, blocks: list[int], look: Look) -> None:
    """Distribution of some blocks' routing weights over all images and experts."""
    for block, colour, dashes in zip(blocks, look.colours.lines, ("-", "--", ":"), strict=False):
        counts = found.overall.histogram[block, : found.layout.experts[block]].sum(axis=0)
        axis.stairs(
            counts / max(counts.sum(), 1), EDGES, color=colour, linestyle=dashes, linewidth=1.5,
            label=shortened(found.layout.blocks[block]).replace("$", r"\$"),
        )  # fmt: skip
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.set_xlabel("routing weight", fontsize=8)
    axis.set_ylabel("share of weights", fontsize=8)
    axis.set_title("All images", fontsize=10)
    axis.legend(fontsize=7)
    dress(axis, look)


def draw_depth(axis: Any, found: RoutingByClass, look: Look) -> None:
    """How much of each block's variance lies between classes, corrected for chance, with its interval."""
    effect, colours, blocks = found.effect, look.colours, np.arange(len(found.layout.blocks))
    if effect.unknown is None:
        axis.axhline(0, color=colours.soft, linewidth=0.8)
        axis.vlines(blocks, effect.low, effect.high, color=colours.bar, linewidth=5, alpha=0.5, label="95 % interval")
        axis.plot(blocks, effect.share, "o", color=colours.accent, label="share, corrected for chance")
        axis.plot(
            blocks, effect.raw, "_", color=colours.soft, markersize=12,
            label=f"not corrected (chance alone: {effect.chance:.0%})",
        )  # fmt: skip
        axis.legend(
            fontsize=7, ncols=1 if look.narrow else 3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False
        )
    else:
        axis.text(
            0.5, 0.5, effect.unknown, transform=axis.transAxes, ha="center", color=colours.ink, fontsize=8, wrap=True
        )
    names = found.layout.blocks
    if len(names) > (4 if look.narrow else 10):  # `block_8` becomes `8`
        names = tuple(name.removeprefix("block_") for name in names)
    axis.set_xticks(blocks, names, parse_math=False)
    if len("".join(names)) > (40 if look.narrow else 90):
        axis.tick_params(axis="x", rotation=60)
    axis.set_xlim(-0.5, len(blocks) - 0.5)
    axis.set_ylim(min(0, *np.nan_to_num(effect.share)) - 0.05, 1)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.tick_params(labelsize=8)
    axis.set_ylabel("share of variance", fontsize=8)
    axis.set_title("How much lies between classes?", fontsize=10)
    dress(axis, look)
