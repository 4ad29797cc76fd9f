"""Pictures of routing weights by class, like the figures of the CondConv paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.routing.by_class import RoutingByClass
from condconv_serve.routing.plot import check_plot_path, save, shortened
from condconv_serve.routing.tally import EDGES

MAX_CLASSES = 8
"""Classes drawn beside each other; more could not be told apart."""
_DEPTHS = 3


def plot_by_class(found: RoutingByClass, path: Path) -> None:
    """Write all pictures of a data set's routing to one file.

    Raises:
        InvalidParameter: unknown kind of file, or no such directory.
    """
    check_plot_path(path)
    path.write_bytes(save(draw_by_class(found), path.suffix.lower().removeprefix(".")))


def draw_by_class(found: RoutingByClass) -> Figure:
    """Mean weights by class, distribution over all images, and how far classes are apart, at three depths."""
    depths = depths_of(len(found.layout.blocks))
    experts = found.mean.shape[2]
    width = max(4.5, min(0.5 * experts + 1.5, 12))
    figure = Figure(figsize=(width * len(depths), 9.5), layout="constrained", dpi=100)
    rows = figure.subplots(3, len(depths), squeeze=False, height_ratios=(3, 2, 2))
    for axis, block in zip(rows[0], depths, strict=True):
        draw_means(axis, found, block)
    for axis, block in zip(rows[1], depths, strict=True):
        draw_distribution(axis, found, block)
    rows[0][0].set_ylabel("mean routing weight")
    rows[1][0].set_ylabel("share of images and experts")
    if len(found.names) > 1:
        figure.legend(*rows[0][0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    for axis in rows[2][1:]:
        axis.remove()
    rows[2][0].remove()
    draw_depth(figure.add_subplot(rows[2][0].get_gridspec()[2, :]), found)
    figure.suptitle(f"Routing of {found.overall.count} images of {len(found.names)} classes", parse_math=False)
    return figure


def depths_of(blocks: int) -> list[int]:
    """The first, a middle and the last block; fewer if there are fewer."""
    return sorted({int(place) for place in np.linspace(0, blocks - 1, min(_DEPTHS, blocks)).round()})


def draw_means(axis: Any, found: RoutingByClass, block: int) -> None:
    """Mean routing weights of one block by expert and class, with the deviation over the class's images."""
    chosen = found.chosen(MAX_CLASSES)
    experts = np.arange(found.layout.experts[block])
    width = 0.8 / len(chosen)
    for position, number in enumerate(chosen):
        axis.bar(
            experts + (position - (len(chosen) - 1) / 2) * width,
            found.mean[number, block, : len(experts)],
            width,
            yerr=found.deviation[number, block, : len(experts)],
            error_kw={"elinewidth": 0.6, "alpha": 0.6},
            label=shortened(f"{found.names[number]} ({found.images[number]})").replace("$", r"\$"),
        )
    axis.set_ylim(0, 1)
    axis.set_xticks(experts[:: 1 if len(experts) <= 16 else 8])
    axis.set_xlabel("expert")
    axis.set_title(f"{found.layout.blocks[block]}, by class", fontsize=10, parse_math=False)


def draw_distribution(axis: Any, found: RoutingByClass, block: int) -> None:
    """Distribution of one block's routing weights over all images and experts."""
    counts = found.overall.histogram[block, : found.layout.experts[block]].sum(axis=0)
    axis.stairs(counts / max(counts.sum(), 1), EDGES, fill=True)
    axis.set_xlim(0, 1)
    axis.set_xlabel("routing weight")
    axis.set_title(f"{found.layout.blocks[block]}, all images", fontsize=10, parse_math=False)


def draw_depth(axis: Any, found: RoutingByClass) -> None:
    """How far classes, and images of one class, are apart, by depth."""
    blocks = np.arange(len(found.layout.blocks))
    axis.plot(blocks, found.between, "o-", label="between classes (deviation of their means)")
    axis.plot(blocks, found.within, "s--", label="within a class (deviation of its images)")
    axis.set_xticks(blocks, found.layout.blocks, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("deviation of routing weights")
    axis.set_title("Do deeper blocks tell classes apart?", fontsize=10)
    axis.legend(fontsize=8)
