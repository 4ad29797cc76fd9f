"""What `condconv routing` prints and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from condconv_serve.cli.output import add_row, err, print_failure, print_json, print_table, say
from condconv_serve.cli.results import AnsweringModel, Results
from condconv_serve.cli.routing_table import print_weights
from condconv_serve.domain import ImageResult, Prediction, RoutedAnswer
from condconv_serve.errors import InvalidParameter
from condconv_serve.results import counted
from condconv_serve.routing.by_class import RoutingByClass, by_class
from condconv_serve.routing.class_export import check_data_path, classes_csv, classes_npz, with_origin
from condconv_serve.routing.export import to_csv, to_npz
from condconv_serve.routing.palette import ThemeName
from condconv_serve.routing.picture import Look, check_plot_path, look_of
from condconv_serve.routing.plot import plot_routing
from condconv_serve.routing.plot_classes import plot_by_class
from condconv_serve.routing.provenance import Provenance
from condconv_serve.routing.report import check_report_path, decimals, percent, probability, write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to write beside what is printed, and how."""

    plot: Path | None
    report: Path | None
    data: tuple[Path, ...]
    theme: ThemeName
    narrow: bool

    def check(self, by: str) -> None:
        """Check before anything is computed that all of it can be written.

        Raises:
            InvalidParameter: unknown kind of file, no such directory, or a report that isn't of classes.
        """
        if self.plot is not None:
            check_plot_path(self.plot)
        if self.report is not None:
            check_report_path(self.report)
            if by != "class":
                raise InvalidParameter("A report compares classes: add --by class.")
        for path in self.data:
            check_data_path(path)

    def look(self, path: Path, made_by: Provenance) -> Look:
        """How the picture looks."""
        return look_of(path, theme=self.theme, narrow=self.narrow, made_by=made_by)


class Kept:
    """Writes the images of other results to files once all are there, or those that are there after Ctrl-C."""

    def __init__(self, results: Results[RoutedAnswer], wanted: Wanted) -> None:
        """Print them as `results` does."""
        self._results = results
        self._wanted = wanted
        self._found: list[ImageResult[RoutedAnswer]] = []

    def started(self, model: AnsweringModel) -> None:
        """Remember the model."""
        self._model = model
        self._results.started(model)

    def result(self, result: ImageResult[RoutedAnswer]) -> None:
        """Print a result and keep it."""
        self._results.result(result)
        self._found.append(result)

    def ended(self, *, interrupted: bool) -> None:
        """Write the files."""
        self._results.ended(interrupted=interrupted)
        predictions = _predictions(self._found)
        if not predictions:
            return
        made_by, wanted = self._model.makes(interrupted=interrupted), self._wanted
        if wanted.plot is not None:
            traces = [(f"{name}\n{_what(found)}", found.routing) for name, found in predictions]
            plot_routing(traces, wanted.plot, wanted.look(wanted.plot, made_by))
            say(f"wrote {wanted.plot}", console=err)
        for path in wanted.data:
            if path.suffix.lower() == ".csv":
                path.write_bytes(with_origin(to_csv(self._found), made_by))
            else:
                path.write_bytes(to_npz(self._found, self._model.routing, made_by=made_by))
            say(f"wrote {path}", console=err)


class ClassResults:
    """Shows classes once all images are there, or those that are there after Ctrl-C."""

    def __init__(self, wanted: Wanted, *, as_json: bool) -> None:
        """Print a table or JSON, and write files."""
        self._wanted = wanted
        self._as_json = as_json
        self._found: list[ImageResult[RoutedAnswer]] = []

    def started(self, model: AnsweringModel) -> None:
        """Remember the model."""
        self._model = model

    def result(self, result: ImageResult[RoutedAnswer]) -> None:
        """Keep a result; print a failure."""
        self._found.append(result)
        if result.prediction is None:
            print_failure(result.filename or result.id, result.error)

    def ended(self, *, interrupted: bool) -> None:
        """Print the classes, and write the files."""
        predictions = _predictions(self._found)
        if not predictions:
            return
        made_by, wanted = self._model.makes(interrupted=interrupted), self._wanted
        traces = [(Path(name).absolute().parent.name, prediction.routing) for name, prediction in predictions]
        found = by_class(traces, [name for name, _ in predictions])
        if self._as_json:
            print_json(found.to_json(made_by))
        else:
            _print_classes(found, f"{made_by.model}/{made_by.version}")
        if wanted.plot is not None:
            plot_by_class(found, wanted.plot, wanted.look(wanted.plot, made_by))
            say(f"wrote {wanted.plot}", console=err)
        if wanted.report is not None:
            failures = len(self._found) - len(predictions)
            write_report(found, wanted.report, made_by, failures=failures, theme=wanted.theme)
            say(f"wrote {wanted.report}", console=err)
        for path in wanted.data:
            is_csv = path.suffix.lower() == ".csv"
            path.write_bytes(with_origin(classes_csv(found), made_by) if is_csv else classes_npz(found, made_by))
            say(f"wrote {path}", console=err)


def _print_classes(found: RoutingByClass, model: str) -> None:
    effect = found.effect
    say((model, "italic"))
    table = Table("block", "share", "95 % interval", "p", "not corrected", "entropy")
    for place, block in enumerate(found.layout.blocks):
        low, high = percent(effect.low[place]), percent(effect.high[place])
        add_row(
            table,
            block,
            percent(effect.share[place]),
            f"{low} to {high}",
            probability(effect.p[place]),
            percent(effect.raw[place]),
            decimals(found.overall.entropy_mean[place]),
        )
    print_table(table)
    say(f"{found.overall.count} images of {len(found.names)} classes")
    say("share: how much of the variance lies between classes, corrected for chance")
    say(f"not corrected: chance alone would give {effect.chance:.0%}")
    for remark in found.remarks():
        say(remark)


def _predictions(results: list[ImageResult[RoutedAnswer]]) -> list[tuple[str, RoutedAnswer]]:
    return [(r.filename or r.id, r.prediction) for r in results if r.prediction is not None]


def print_routing(name: str, found: RoutedAnswer) -> None:
    """Print an image's weights."""
    if not found.routing.layout:
        say(f"{name}: {_what(found)}; a static network has no routing.")
        return
    sure = f" ({found.best.probability:.1%})" if isinstance(found, Prediction) else ""
    say((f"{name}: {_what(found)}{sure}", "italic"))
    print_weights(found.routing)


def _what(found: RoutedAnswer) -> str:
    """The class, or how many objects there are of each."""
    return found.best.label if isinstance(found, Prediction) else counted(found.objects)
