"""A data set's routing as one HTML page. It holds its pictures, and needs no scripts and no other files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from condconv_serve.routing.by_class import RoutingByClass
from condconv_serve.routing.output_path import check_output_path
from condconv_serve.routing.palette import DARK, LIGHT, ThemeName
from condconv_serve.routing.picture import Look, dark_style, dress, new_figure
from condconv_serve.routing.plot_classes import (
    MAX_CLASSES,
    depths_of,
    draw_depth,
    draw_distribution,
    draw_map,
    map_size,
)
from condconv_serve.routing.provenance import Provenance

MAX_ROWS = 1000
_STYLE = """
:root { color-scheme: %(scheme)s; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: %(ink)s; background: %(surface)s; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { max-width: 100%%; height: auto; }
.maps { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: start; } .maps figure { max-width: 100%%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
td { white-space: nowrap; } th, td { padding: 0.15rem 0.6rem; text-align: right; border-bottom: 1px solid %(line)s; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: %(surface)s; }
footer { margin-top: 2rem; color: %(soft)s; font-size: 0.85rem; overflow-wrap: anywhere; }
@media (max-width: 30rem) { th, td { padding: 0.15rem 0.35rem; font-size: 0.85rem; } }
"""

REPORT_SUFFIXES = (".html", ".htm")


def check_report_path(path: Path) -> None:
    """Check early that a report can be written there.

    Raises:
        InvalidParameter: not .html, or no such directory.
    """
    check_output_path(path, REPORT_SUFFIXES, what="a report is")


def write_report(
    found: RoutingByClass, path: Path, made_by: Provenance, *, failures: int = 0, theme: ThemeName = "auto"
) -> None:
    """Write the page.

    Args:
        found: what to tell of.
        path: where to.
        made_by: what made it.
        failures: images that could not be used.
        theme: `auto` follows the browser.

    Raises:
        InvalidParameter: not .html, or no such directory.
    """
    check_report_path(path)
    path.write_text(report(found, made_by, failures=failures, theme=theme), encoding="utf-8")


def report(found: RoutingByClass, made_by: Provenance, *, failures: int = 0, theme: ThemeName = "auto") -> str:
    """The page's HTML."""
    look = Look(kind="svg", theme=theme, narrow=True)
    count, classes = found.overall.count, len(found.names)
    title = f"Routing of {escape(f'{made_by.model}/{made_by.version}')}"
    left_out = f" {failures} more could not be used." if failures else ""
    shown = (
        f" Shown are the {MAX_CLASSES} with the most images; the table below and the data have the others."
        if classes > MAX_CLASSES
        else ""
    )
    names, width, height = map_size(found)
    maps = "".join(
        _figure((names + width, height), [_map(found, block, look)], look) for block in range(len(found.layout.blocks))
    )
    sections = [
        f"<h1>{title}</h1><p>{count} images of {classes} classes; a class is the directory that an image lies in."
        f"{left_out}</p>",
        *(f"<p><strong>{escape(remark)}</strong></p>" for remark in found.remarks()),
        f"<h2>By depth</h2><p>{_explained(found)}</p>",
        f'<div class="maps">{_figure((4.8, 3.4), [lambda axis: draw_depth(axis, found, look)], look)}'
        f"{_figure((4.4, 3.4), [_distribution(found, look)], look)}</div>",
        _blocks(found),
        f"<h2>Classes and experts</h2><p>Mean routing weights, 0 to 1; in brackets the number of images.{shown}</p>",
        f'<div class="maps">{maps}</div>',
        _classes(found),
        f"<footer>{escape(made_by.line())}<br>SHA-256 of the weights: {escape(made_by.weights_sha256)}; "
        f"{escape(made_by.made)}</footer>",
    ]
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{_style(theme)}</style>{dark_style(body) if look.adapts else ''}</head><body><main>\n{body}\n"
        "</main></body></html>\n"
    )


def _style(theme: ThemeName) -> str:
    roles = ("ink", "soft", "line", "surface")
    if theme == "auto":
        return _STYLE % {
            "scheme": "light dark",
            **{role: f"light-dark({getattr(LIGHT, role)}, {getattr(DARK, role)})" for role in roles},
        }
    colours = DARK if theme == "dark" else LIGHT
    return _STYLE % {"scheme": theme, **{role: getattr(colours, role) for role in roles}}


def _explained(found: RoutingByClass) -> str:
    effect = found.effect
    return (
        "The share is how much of a block's variance lies between the classes, corrected for chance (epsilon "
        "squared): 0 if classes make no difference, 1 if all images of a class are routed alike. A bar is the 95 % "
        "interval; p is how often chance alone gives so much. Not corrected, chance alone would give "
        f"{effect.chance:.0%}: there are {found.overall.count} images of {len(found.names)} classes."
    )


def _map(found: RoutingByClass, block: int, look: Look) -> Callable[[Any], Any]:
    return lambda axis: draw_map(axis, found, block, look)


def _distribution(found: RoutingByClass, look: Look) -> Callable[[Any], Any]:
    return lambda axis: draw_distribution(axis, found, depths_of(len(found.layout.blocks)), look)


def _figure(size: tuple[float, float], drawings: Sequence[Callable[[Any], Any]], look: Look) -> str:
    figure = new_figure(*size, look)
    axes = figure.subplots(1, len(drawings), squeeze=False)
    for axis, draw in zip(axes[0], drawings, strict=True):
        draw(axis)
        dress(axis, look)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _blocks(found: RoutingByClass) -> str:
    effect = found.effect
    rows = [
        (
            name,
            percent(effect.share[place]),
            f"{percent(effect.low[place])} to {percent(effect.high[place])}",
            probability(effect.p[place]),
            percent(effect.raw[place]),
            decimals(effect.between[place]),
            decimals(effect.within[place]),
            decimals(found.overall.entropy_mean[place]),
            ", ".join(f"{share:.0%}" for share in found.overall.load[place, : found.layout.experts[place]]),
        )
        for place, name in enumerate(found.layout.blocks)
    ]
    header = (
        "block", "share between classes", "95 % interval", "p", "not corrected", "deviation between", "within",
        "entropy", "load by expert",
    )  # fmt: skip
    return _table(header, rows)


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


def percent(share: float) -> str:
    """A share for people; a dash where there is none."""
    return "–" if np.isnan(share) else f"{share + 0:.0%}".replace("-0%", "0%")  # noqa: RUF001


def decimals(value: float) -> str:
    """A figure for people; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.3f}"  # noqa: RUF001


def probability(p: float) -> str:
    """A p-value for people; a dash where there is none."""
    return "< 0.001" if p < 0.001 else decimals(p)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
