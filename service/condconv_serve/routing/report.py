"""A data set's routing as one HTML page. It holds its pictures, and needs no scripts and no other files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from condconv_serve.errors import InvalidParameter
from condconv_serve.routing.by_class import RoutingByClass
from condconv_serve.routing.plot_classes import MAX_CLASSES, draw_depth, draw_distribution, draw_means

MAX_ROWS = 1000
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; background: white; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
"""


def check_report_path(path: Path) -> None:
    """Check early that a report can be written there.

    Raises:
        InvalidParameter: not .html, or no such directory.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidParameter(f"{path}: a report is written as .html.")
    if not path.parent.is_dir():
        raise InvalidParameter(f"{path}: there is no directory {path.parent}.")


def write_report(found: RoutingByClass, path: Path, *, model: str, failures: int = 0) -> None:
    """Write the page.

    Args:
        found: what to tell of.
        path: where to.
        model: name and version of the model.
        failures: images that could not be used.

    Raises:
        InvalidParameter: not .html, or no such directory.
    """
    check_report_path(path)
    path.write_text(report(found, model=model, failures=failures), encoding="utf-8")


def report(found: RoutingByClass, *, model: str, failures: int = 0) -> str:
    """The page's HTML."""
    count, classes = found.overall.count, len(found.names)
    title = f"Routing of {escape(model)}"
    left_out = f" {failures} more could not be used." if failures else ""
    shown = f" Shown are the {MAX_CLASSES} with the most images." if classes > MAX_CLASSES else ""
    sections = [
        f"<h1>{title}</h1><p>{count} images of {classes} classes; a class is the directory that an image lies in."
        f"{left_out}</p>",
        "<h2>By depth</h2><p>How far apart the classes are in each block, and the images of one class. The share is "
        "that of the variance which lies between classes.</p>",
        _figure((7, 3), [lambda axis: draw_depth(axis, found)]),
        _blocks(found),
        f"<h2>Mean weights by class</h2><p>Bars are means, lines standard deviations over a class's images.{shown} "
        "Beside it the distribution over all images and experts of the block.</p>",
    ]
    sections += [
        f"<h3>{escape(name)}</h3>{_figure((11, 3), [_means(found, block), _distribution(found, block)])}"
        for block, name in enumerate(found.layout.blocks)
    ]
    sections.append(_classes(found))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_STYLE}</style></head><body><main>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def _means(found: RoutingByClass, block: int) -> Any:
    def draw(axis: Any) -> None:
        draw_means(axis, found, block)
        if len(found.names) > 1:
            axis.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))

    return draw


def _distribution(found: RoutingByClass, block: int) -> Any:
    return lambda axis: draw_distribution(axis, found, block)


def _figure(size: tuple[float, float], drawings: Sequence[Any]) -> str:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(drawings), squeeze=False, width_ratios=(2, 1)[: len(drawings)])
    for axis, draw in zip(axes[0], drawings, strict=True):
        draw(axis)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _blocks(found: RoutingByClass) -> str:
    rows = [
        (name, *(f"{v:.3f}" for v in (between, within)), f"{share:.0%}", f"{entropy:.3f}", load)
        for name, between, within, share, entropy, load in zip(
            found.layout.blocks,
            found.between,
            found.within,
            found.explained,
            found.overall.entropy_mean,
            (
                ", ".join(f"{share:.0%}" for share in block[:experts])
                for block, experts in zip(found.overall.load, found.layout.experts, strict=True)
            ),
            strict=True,
        )
    ]
    return _table(("block", "between", "within", "share", "entropy", "load by expert"), rows)


def _classes(found: RoutingByClass) -> str:
    last = len(found.layout.blocks) - 1
    experts = found.layout.experts[last]
    rows = [
        (name, str(images), *(f"{mean:.3f}" for mean in means[last, :experts]))
        for name, images, means in zip(found.names[:MAX_ROWS], found.images, found.mean, strict=False)
    ]
    more = f"<p>The first {MAX_ROWS} of {len(found.names)} classes.</p>" if len(found.names) > MAX_ROWS else ""
    header = ("class", "images", *(f"expert {expert}" for expert in range(experts)))
    return f"<h2>Classes in {escape(found.layout.blocks[last])}</h2>{more}{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
