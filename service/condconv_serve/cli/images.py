"""Commands that classify images without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from condconv_serve.cli.classifying import classify
from condconv_serve.cli.common import Images, Json, ModelOption, Store, friendly
from condconv_serve.cli.output import add_row, err, print_failure, print_json, print_table, say
from condconv_serve.cli.results import JsonLines, JsonResults, Results, TextResults, name_of
from condconv_serve.domain import ClassifiedImage, Prediction, ServedModel
from condconv_serve.errors import InvalidParameter

app = typer.Typer()

Lines = Annotated[bool, typer.Option("--json-lines", help="Print a JSON object per image, each on a line of its own.")]


@app.command(epilog="Example: [bold]condconv predict photo.jpg 'holiday/*.png' --top-k 3[/]")
@friendly
def predict(
    images: Images,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Classes to show per image. Default: 5, or all if there are fewer."),
    ] = None,
    as_json: Json = False,
    as_lines: Lines = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Classify images without a server. Results appear as they come."""
    results: Results = _as_json(as_json, as_lines, routing=False) or TextResults(_print_classes)
    raise typer.Exit(classify(images, results, model=model, model_store=model_store, top_k=top_k))


@app.command(
    epilog="Example: [bold]condconv routing photo.jpg --plot routing.png[/], or "
    "[bold]condconv routing photos/ --by class --plot classes.png --report classes.html[/]"
)
@friendly
def routing(
    images: Images,
    by: Annotated[
        Literal["image", "class"],
        typer.Option(help="Show each image, or the mean of each class. An image's class is the name of its directory."),
    ] = "image",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture (.png, .svg or .pdf).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="With --by class: write a page (.html).")
    ] = None,
    as_json: Json = False,
    as_lines: Lines = False,
    model: ModelOption = None,
    model_store: Store = None,
) -> None:
    """Show which experts images are routed to, without a server. Results appear as they come."""
    from condconv_serve.routing.plot import check_plot_path
    from condconv_serve.routing.report import check_report_path

    if plot is not None:
        check_plot_path(plot)
    if report is not None:
        check_report_path(report)
        if by != "class":
            raise InvalidParameter("A report compares classes: add --by class.")
    if as_lines and by == "class":
        raise InvalidParameter("Lines of JSON are for images: use --json for classes.")
    results: Results
    if by == "class":
        results = _Classes(plot=plot, report=report, as_json=as_json)
    else:
        results = _as_json(as_json, as_lines, routing=True) or TextResults(_print_routing)
        if plot is not None:
            results = _Plotted(results, plot)
    raise typer.Exit(classify(images, results, model=model, model_store=model_store, top_k=1))


def _as_json(as_json: bool, as_lines: bool, *, routing: bool) -> Results | None:
    if as_json and as_lines:
        raise typer.BadParameter("print one document or a line per image, not both.", param_hint="--json, --json-lines")
    if as_lines:
        return JsonLines(routing=routing)
    return JsonResults(routing=routing) if as_json else None


def _print_classes(name: str, prediction: Prediction) -> None:
    say((name, "bold"))
    for scored in prediction.classes:
        say(f"  {scored.probability:7.2%}  {scored.label}")


class _Plotted:
    """Draws the images of other results once all are there."""

    def __init__(self, results: Results, plot: Path) -> None:
        self._results = results
        self._plot = plot
        self._found: list[tuple[str, Prediction]] = []

    def started(self, model: ServedModel) -> None:
        self._results.started(model)

    def result(self, result: ClassifiedImage) -> None:
        self._results.result(result)
        if result.prediction is not None:
            self._found.append((result.filename or result.id, result.prediction))

    def ended(self, *, interrupted: bool) -> None:
        from condconv_serve.routing.plot import plot_routing

        self._results.ended(interrupted=interrupted)
        if self._found:
            traces = [
                (f"{name}\n{prediction.classes[0].label}", prediction.routing) for name, prediction in self._found
            ]
            plot_routing(traces, self._plot)
            say(f"wrote {self._plot}", console=err)


class _Classes:
    """Shows classes once all images are there, or those that are there after Ctrl-C."""

    def __init__(self, *, plot: Path | None, report: Path | None, as_json: bool) -> None:
        self._plot = plot
        self._report = report
        self._as_json = as_json
        self._found: list[tuple[str, Prediction]] = []
        self._failures = 0

    def started(self, model: ServedModel) -> None:
        self._model = model

    def result(self, result: ClassifiedImage) -> None:
        name = result.filename or result.id
        if result.prediction is None:
            print_failure(name, result.error)
            self._failures += 1
        else:
            self._found.append((name, result.prediction))

    def ended(self, *, interrupted: bool) -> None:
        if self._found:
            self._show()

    def _show(self) -> None:
        from condconv_serve.routing.by_class import by_class
        from condconv_serve.routing.plot_classes import plot_by_class
        from condconv_serve.routing.report import write_report

        found = by_class([(Path(name).absolute().parent.name, answer.routing) for name, answer in self._found])
        name = f"{self._model.name}/{self._model.version}"
        if self._as_json:
            print_json(found.to_json(model=name_of(self._model)))
        else:
            say((name, "italic"))
            table = Table("block", "between classes", "within a class", "share between", "entropy")
            columns = (found.between, found.within, found.explained, found.overall.entropy_mean)
            for block, between, within, share, entropy in zip(found.layout.blocks, *columns, strict=True):
                add_row(table, block, f"{between:.3f}", f"{within:.3f}", f"{share:.0%}", f"{entropy:.3f}")
            print_table(table)
            say(f"{len(self._found)} images of {len(found.names)} classes")
        if self._plot is not None:
            plot_by_class(found, self._plot)
            say(f"wrote {self._plot}", console=err)
        if self._report is not None:
            write_report(found, self._report, model=name, failures=self._failures)
            say(f"wrote {self._report}", console=err)


def _print_routing(name: str, prediction: Prediction) -> None:
    best = prediction.classes[0]
    if not prediction.routing.layout:
        say(f"{name}: {best.label}; a static network has no routing.")
        return
    say((f"{name}: {best.label} ({best.probability:.1%})", "italic"))
    table = Table("block", *(f"expert {i}" for i in range(prediction.routing.weights.shape[1])))
    for block, weights in prediction.routing.by_block().items():
        add_row(table, block, *((f" {w:.3f} ", f"on rgb({int(40 + 180 * w)},60,60)") for w in weights))
    print_table(table)
