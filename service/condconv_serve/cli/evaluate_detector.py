"""How the command that evaluates a model does it with a detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.table import Table

from condconv_serve.cli.evaluating import Kind, measure
from condconv_serve.cli.output import add_row, print_table, say

if TYPE_CHECKING:
    from condconv_serve.offline.evaluate_detector import DetectorEvaluation
    from condconv_serve.routing.palette import ThemeName
    from condconv_serve.settings import Settings
    from condconv_serve.tasks.average_precision import DetectionQuality

MAX_CLASSES = 20
"""With more classes than this only those with the lowest AP50 are listed."""


def evaluate_detector(
    settings: Settings,
    evaluation: DetectorEvaluation,
    *,
    plot: Path | None,
    theme: ThemeName,
    as_json: bool,
) -> NoReturn:
    """Measure a detector, print the figures, and exit."""
    from condconv_serve.offline.evaluate_detector import DetectorEvaluation, run_detector

    kind = Kind(
        run=run_detector,
        finish=DetectorEvaluation.finish,
        document=DetectorEvaluation.to_json,
        show=_print_quality,
        draw=_draw,
        notes=lambda evaluation: [f"left out: {left_out}" for left_out in evaluation.left_out],
    )
    measure(settings, evaluation, kind, plot=plot, theme=theme, as_json=as_json)


def _draw(*figures: Any, **title: Any) -> None:
    from condconv_serve.offline.plot_precision import plot_precision  # which imports matplotlib

    plot_precision(*figures, **title)


def _print_quality(evaluation: DetectorEvaluation, quality: DetectionQuality) -> None:
    name = f"{evaluation.manifest.name}/{evaluation.manifest.version}"
    left_out = f", {len(evaluation.failures)} more left out" if evaluation.failures else ""
    say((name, "bold"), f": {quality.images} photos with {quality.objects} objects{left_out}")
    say(f"  AP      {quality.ap:6.1%}  COCO's: the mean over overlaps of 0.5 to 0.95")
    say(f"  AP50    {quality.ap50:6.1%}  boxes overlap an object by half")
    say(f"  AP75    {quality.ap75:6.1%}")
    say(f"  recall  {quality.recall:6.1%}  share of the objects that are found, over the same overlaps")
    sizes = ", ".join(f"{size} {value:.1%}" for size, value in quality.by_size.items() if value is not None)
    say(f"  AP of objects by size: {sizes}")
    tested = [one for one in quality.classes if one.objects]
    shown = tested
    if len(tested) > MAX_CLASSES:
        worst = sorted(tested, key=lambda one: (one.ap50 or 0.0, -one.objects))[:MAX_CLASSES]
        shown = sorted(worst, key=lambda one: (one.ap50 or 0.0, one.index))
        say("")
        say(f"The {MAX_CLASSES} classes with the lowest AP50; --json has all {len(tested)}:")
    table = Table(box=None, header_style="bold")
    table.add_column("class", overflow="fold")
    for column in ("objects", "boxes", "AP50", "AP", "recall"):
        table.add_column(column, justify="right")
    for one in shown:
        shares = (f"{share or 0.0:.1%}" for share in (one.ap50, one.ap, one.recall))
        add_row(table, evaluation.labels[one.index].label, one.objects, one.found, *shares)
    print_table(table)
