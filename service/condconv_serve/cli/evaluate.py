"""The command that evaluates a model on labelled images, and how it shows what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from condconv_serve.cli.common import ModelName, Store, ThemeOption, friendly, read_settings
from condconv_serve.cli.evaluating import Kind, measure
from condconv_serve.cli.output import add_row, note, print_table, say

if TYPE_CHECKING:
    from condconv_serve.offline.evaluate import Evaluation
    from condconv_serve.tasks.quality import Quality, Share

MAX_CLASSES = 20
"""With more classes than this only those with the least recall are listed."""
MAX_CONFUSED = 10

app = typer.Typer()


@app.command(
    "evaluate",
    epilog="Example: [bold]condconv models evaluate efficientnet-lite0-condconv-4e photos/ --plot quality.png[/]",
)
@friendly
def evaluate_model(
    bundle: ModelName,
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Your images, in a folder per class. A folder is called by the class's label, WordNet id or index. "
            "For a detector, a folder with photos and their annotations, COCO's or Pascal VOC's.",
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a detector: COCO's JSON file, a folder of Pascal VOC's XML files, or a list of their names. "
            "Default: what is in the folder, if that is clear.",
        ),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out folders, or boxes, that are no class of the model.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw calibration and confusions, or a detector's precision (.png, .svg or .pdf).",
        ),
    ] = None,
    theme: ThemeOption = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures as JSON, also the matrix of confusions, or all curves.")
    ] = False,
    model_store: Store = None,
) -> None:
    """Measure how often a model is right on your own labelled images, where it errs, and whether it knows.

    Of a detector: COCO's average precision on your annotated photos.
    """
    from condconv_serve.offline.evaluate import Evaluation, prepare, run
    from condconv_serve.routing.picture import check_plot_path
    from condconv_serve.store import Catalog, open_bundle

    if plot is not None:
        check_plot_path(plot)
    settings = read_settings(model_store=model_store)
    version = Catalog(settings.model_store).find_named(bundle)
    if open_bundle(version).manifest.task == "detection":
        from condconv_serve.cli.evaluate_detector import evaluate_detector
        from condconv_serve.offline.evaluate_detector import prepare_detector

        found = prepare_detector(version, directory, annotations=annotations, skip_unknown=skip_unknown)
        evaluate_detector(settings, found, plot=plot, theme=theme, as_json=as_json)
    if annotations is not None:
        raise typer.BadParameter(f"{bundle} is no detector.", param_hint="--annotations")
    evaluation = prepare(version, directory, skip_unknown=skip_unknown)
    for text in evaluation.data.notes:
        note(text)
    kind = Kind(
        run=run,
        finish=Evaluation.finish,
        document=Evaluation.to_json,
        show=_print_quality,
        draw=_draw,
        so_far=_so_far,
    )
    measure(settings, evaluation, kind, plot=plot, theme=theme, as_json=as_json)


def _draw(*figures: Any, **title: Any) -> None:
    from condconv_serve.offline.plot_quality import plot_quality  # which imports matplotlib

    plot_quality(*figures, **title)


def _so_far(evaluation: Evaluation) -> str:
    judged = evaluation.done - len(evaluation.failures)
    return f"top-1 {evaluation.hits / judged:.1%}" if judged else ""


def _print_quality(evaluation: Evaluation, quality: Quality) -> None:
    name = f"{evaluation.manifest.name}/{evaluation.manifest.version}"
    left_out = f", {len(evaluation.failures)} more left out" if evaluation.failures else ""
    with_images = sum(found.images > 0 for found in quality.classes)
    say((name, "bold"), f": {quality.images} images of {with_images} classes{left_out}")
    say(f"  top-1              {_with_interval(quality.top1)}")
    if quality.top5 is not None:
        say(f"  top-5              {_with_interval(quality.top5)}")
    say(f"  mean recall        {quality.mean_recall:6.1%}  over the classes, each with the same weight")
    say(f"  mean confidence    {quality.confidence:6.1%}")
    say(f"  calibration error  {quality.calibration_error:6.1%}  (ECE, {len(quality.bins)} bins)")
    say(f"  cross-entropy      {quality.loss:6.3f}")
    _print_classes(evaluation, quality)
    _print_confused(evaluation, quality)


def _with_interval(share: Share) -> str:
    return f"{share.value:6.1%}  (95 % interval {share.low:.1%} to {share.high:.1%})"


def _print_classes(evaluation: Evaluation, quality: Quality) -> None:
    tested = [found for found in quality.classes if found.recall is not None]
    shown = tested
    if len(tested) > MAX_CLASSES:
        worst = sorted(tested, key=lambda found: (found.recall or 0.0, -found.images))[:MAX_CLASSES]
        shown = sorted(worst, key=lambda found: (found.recall or 0.0, found.index))
        say("")
        say(f"The {MAX_CLASSES} classes with the least recall; --json has all {len(tested)}:")
    table = Table(box=None, header_style="bold")
    table.add_column("class", overflow="fold")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    for found in shown:
        precision = "-" if found.precision is None else f"{found.precision:.1%}"
        label = evaluation.labels[found.index].label
        add_row(table, label, found.images, f"{found.recall or 0.0:.1%}", precision)
    print_table(table)


def _print_confused(evaluation: Evaluation, quality: Quality) -> None:
    confused = quality.most_confused(MAX_CONFUSED)
    if not confused:
        return
    images = {found.index: found.images for found in quality.classes}
    say(("most confused", "bold"))
    for truth, predicted, count in confused:
        right, wrong = evaluation.labels[truth].label, evaluation.labels[predicted].label
        say(f"  {right} taken for {wrong}: {count} of {images[truth]}")
