"""What all pictures share: kinds of files, themes, what made them, and titles."""

from __future__ import annotations

import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condconv_serve.routing.output_path import check_output_path
from condconv_serve.routing.palette import LEVELS, Theme, ThemeName, dark_counterparts, theme_of
from condconv_serve.routing.provenance import Provenance

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
DPI = 110
MAX_PIXELS = 4000
"""Longest side of a picture."""
MAX_TITLE = 40
_COLOUR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a picture looks.

    Attributes:
        kind: of file: png, svg or pdf.
        theme: `auto` is light. An SVG of `auto` turns dark where the program that shows it is dark.
        narrow: whether its parts lie below each other, for phones and columns of text.
        made_by: what made it, for its lower edge and its metadata; None leaves that out.
    """

    kind: str = "svg"
    theme: ThemeName = "auto"
    narrow: bool = False
    made_by: Provenance | None = None

    @property
    def adapts(self) -> bool:
        """Whether it follows the program that shows it."""
        return self.theme == "auto" and self.kind == "svg"

    @property
    def colours(self) -> Theme:
        """The colours to draw with."""
        return theme_of(self.theme, adapts=self.adapts)


def look_of(path: Path, *, theme: ThemeName = "auto", narrow: bool = False, made_by: Provenance | None = None) -> Look:
    """The look of a picture that is written to a file; its suffix says what kind of picture.

    Raises:
        InvalidParameter: unknown kind of file, or no such directory.
    """
    check_plot_path(path)
    return Look(kind=path.suffix.lower().removeprefix("."), theme=theme, narrow=narrow, made_by=made_by)


def check_plot_path(path: Path) -> None:
    """Check early that a picture can be written there.

    Raises:
        InvalidParameter: unknown kind of file, or no such directory.
    """
    check_output_path(path, PLOT_SUFFIXES, what="a plot is")


def new_figure(width: float, height: float, look: Look) -> Figure:
    """An empty figure of a size in inches, small enough for a file."""
    size = (width, height)
    return Figure(
        figsize=size, layout="constrained", dpi=min(DPI, MAX_PIXELS / max(size)), facecolor=look.colours.surface
    )


def dress(axis: Any, look: Look) -> None:
    """Give axes the colours of their surroundings. Call it when titles and legends are there."""
    colours = look.colours
    axis.set_facecolor(colours.surface)
    axis.tick_params(which="both", color=colours.soft, labelcolor=colours.ink)
    for spine in axis.spines.values():
        spine.set_color(colours.line)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(colours.ink)
    if legend := axis.get_legend():
        legend.get_frame().set(facecolor=colours.surface, edgecolor=colours.line)
        for text in legend.get_texts():
            text.set_color(colours.ink)


def save(figure: Figure, look: Look) -> bytes:
    """A figure as a file. The same bytes for the same figure and origin, as far as matplotlib allows."""
    if look.made_by is not None:
        wide = max(30, int(figure.get_figwidth() * 17))
        line = "\n".join(textwrap.wrap(printable(look.made_by.line()), wide, max_lines=4, placeholder=" …"))
        figure.supxlabel(line, x=0.01, ha="left", fontsize=6.5, color=look.colours.soft, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=look.kind, metadata=_metadata(look))
    if not look.adapts:
        return buffer.getvalue()
    return with_dark_colours(buffer.getvalue().decode()).encode()


def _metadata(look: Look) -> dict[str, Any]:
    made = look.made_by
    line = "" if made is None else f"{made.line()} (weights' SHA-256: {made.weights_sha256}; {made.made})"
    said = printable(line) or None
    match look.kind:
        case "png":
            return {"Software": None if made is None else made.software, **({"Description": said} if said else {})}
        case "svg":
            date = None if made is None else made.made
            return {"Date": date, "Creator": made.software if made else None, "Description": said}
        case _:
            return {"CreationDate": None, "Creator": made.software if made else None, "Subject": said}


def with_dark_colours(svg: str) -> str:
    """An SVG drawn with the colours of both themes, which turns dark where the program that shows it is dark."""
    return svg.replace("<defs>", f"<defs>\n  {dark_style(svg)}", 1)


def dark_style(svg: str) -> str:
    """A style element that turns the colours of SVGs dark in dark surroundings; other programs ignore it."""
    dark = dark_counterparts()
    rules = [
        f'[style*="{what}: {colour}"]{{{what}:{dark[colour]}!important}}'
        for what, colour in sorted(set(_COLOUR.findall(svg)))
        if colour in dark
    ]
    return f'<style type="text/css">@media (prefers-color-scheme: dark){{{"".join(rules)}}}</style>'


def printable(text: str) -> str:
    """Text without characters that fonts can't draw."""
    return "".join(c if c.isprintable() else " " for c in text)


def shortened(title: str, most: int = MAX_TITLE) -> str:
    """A title without characters that fonts can't draw, and not too wide."""
    lines = [printable(line) for line in title.split("\n")]
    return "\n".join(line if len(line) <= most else f"{line[: most - 1]}…" for line in lines)


def draw_scale(axis: Any, look: Look) -> None:
    """Draw what the colours of a heat map mean, from left to right. Unlike a colour bar it can turn dark."""
    draw_cells(axis, np.linspace(0, 1, LEVELS)[None], look, numbers=False, gap=0)
    axis.set_yticks([])
    axis.set_xticks(np.linspace(-0.5, LEVELS - 0.5, 6), [f"{place / 5:.1f}" for place in range(6)])
    axis.tick_params(labelsize=8)
    axis.set_xlabel("routing weight", fontsize=8)
    dress(axis, look)


def draw_cells(axis: Any, values: Any, look: Look, *, numbers: bool, gap: float | None = None) -> None:
    """Draw weights `[rows, columns]`, NaN for none, as a heat map from 0 to 1 whose first row is on top.

    Args:
        axis: where.
        values: the weights.
        look: its colours.
        numbers: whether cells say their weights.
        gap: between cells, in points; by default it depends on their number.
    """
    colours = look.colours
    rows, columns = values.shape
    if gap is None:
        gap = 0.8 if rows * columns <= 2000 else 0
    axis.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(values),
        vmin=0, vmax=1, cmap=colours.scale, edgecolors=colours.surface if gap else "face", linewidth=gap or 0.2,
    )  # fmt: skip
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_xlim(-0.5, columns - 0.5)
    for (row, column), value in np.ndenumerate(values) if numbers else ():
        if not np.isnan(value):
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colours.on(float(value)),
                in_layout=False,
            )  # fmt: skip
