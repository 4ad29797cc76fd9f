"""Pictures of images' routing weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condconv_serve.domain import RoutingTrace
from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.picture import Look, draw_cells, draw_scale, dress, new_figure, save, shortened

MAX_COLUMNS = 4
MAX_NUMBERED_EXPERTS = 16
MAX_NUMBERS = 2000
"""With more weights than this they are drawn without numbers."""


def plot_routing(traces: Sequence[tuple[str, RoutingTrace]], path: Path, look: Look) -> None:
    """Draw one heat map per image, blocks down and experts across, and write them to one file.

    Args:
        traces: a title and the routing weights of each image, at least one.
        path: where to.
        look: from `look_of`.

    Raises:
        InvalidParameter: a static network's empty routing.
    """
    path.write_bytes(draw_routing(traces, look))


def draw_routing(traces: Sequence[tuple[str, RoutingTrace]], look: Look) -> bytes:
    """Draw one heat map per image, blocks down and experts across.

    Args:
        traces: a title and the routing weights of each image, at least one.
        look: kind of file, and colours.

    Raises:
        InvalidParameter: a static network's empty routing.
    """
    if not traces[0][1].layout:
        raise InvalidParameter("A static network has no routing to plot.")
    columns = 1 if look.narrow else min(len(traces), MAX_COLUMNS)
    rows = -(-len(traces) // columns)
    blocks, experts = traces[0][1].weights.shape
    numbers = experts <= MAX_NUMBERED_EXPERTS and len(traces) * blocks * experts <= MAX_NUMBERS
    width, height = (0.5, 0.34) if numbers else (0.16, 0.16)
    tall = rows * (1.2 + height * blocks)
    figure = new_figure(0.4 + columns * (1.2 + max(width * experts, 1.6)), tall + 0.9, look)
    grid = figure.add_gridspec(2, 1, height_ratios=(tall, 0.16))
    axes = grid[0].subgridspec(rows, columns).subplots(squeeze=False)
    for axis, (title, trace) in zip(axes.flat, traces, strict=False):
        draw_cells(axis, trace.layout.blanked(trace.weights), look, numbers=numbers)
        axis.set_title(shortened(title), fontsize=9, parse_math=False)
        axis.set_xticks(range(0, experts, 1 if experts <= MAX_NUMBERED_EXPERTS else 8))
        axis.set_yticks(range(blocks), trace.layout.blocks)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("expert", fontsize=8)
        dress(axis, look)
    for axis in axes.flat[len(traces) :]:
        axis.axis("off")
    draw_scale(figure.add_subplot(grid[1]), look)
    return save(figure, look)
