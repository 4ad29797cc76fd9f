"""What evaluating a classifier and a detector share: progress, what can't be used, figures or JSON, and a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from condconv_serve.cli.common import INTERRUPTED, command_line
from condconv_serve.cli.output import SilentProgress, err, note, print_failure, to_json, write_json

if TYPE_CHECKING:
    from condconv_serve.domain import Label, Manifest
    from condconv_serve.routing.palette import ThemeName
    from condconv_serve.settings import Settings

MAX_FAILURES = 8
_LINES_FROM = 100
"""With fewer images than this lines about progress would be in the way."""
_NUMBERS = re.compile(r"\[\n\s+(-?[\d.]+(?:,\s+-?[\d.]+)*)\n\s+\]")


class Evaluated(Protocol):
    """An evaluation of either kind while it runs."""

    manifest: Manifest
    labels: list[Label]
    failures: list[tuple[str, str]]

    @property
    def total(self) -> int:
        """Images in all."""
        ...

    @property
    def done(self) -> int:
        """Images that are done or can't be used."""
        ...


Evaluation = TypeVar("Evaluation", bound=Evaluated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[Evaluation]):
    """How a kind of model is evaluated and shown.

    Attributes:
        run: computes all images, and calls `progress` after each.
        finish: gives the figures so far; `document`, `show` and `draw` take them.
        document: the figures as JSON has them.
        show: prints the figures.
        draw: writes a picture of them to a file.
        so_far: a word on how good it is, while it runs.
        notes: what else was left out.
    """

    run: Callable[..., None]
    finish: Callable[[Evaluation], Any]
    document: Callable[[Evaluation, Any], dict[str, Any]]
    show: Callable[[Evaluation, Any], None]
    draw: Callable[..., None]
    so_far: Callable[[Evaluation], str] = lambda evaluation: ""
    notes: Callable[[Evaluation], Sequence[str]] = lambda evaluation: ()


def measure(
    settings: Settings,
    evaluation: Evaluation,
    kind: Kind[Evaluation],
    *,
    plot: Path | None,
    theme: ThemeName,
    as_json: bool,
) -> NoReturn:
    """Measure a model, print the figures, and exit. If it is interrupted, the figures are of what was done."""
    interrupted = False
    try:
        with _Progress(evaluation.total, kind.so_far) as shown:
            kind.run(settings, evaluation, progress=shown.update)
    except KeyboardInterrupt:
        interrupted = True
        note(f"interrupted after {evaluation.done} of {evaluation.total} images, which were taken at random")
        if evaluation.done == len(evaluation.failures):
            raise typer.Exit(INTERRUPTED) from None
    for name, reason in evaluation.failures[:MAX_FAILURES]:
        print_failure(name, reason)
    if len(evaluation.failures) > MAX_FAILURES:
        note(f"and {len(evaluation.failures) - MAX_FAILURES} more that can't be used; --json names them all")
    for text in kind.notes(evaluation):
        note(text)
    quality = kind.finish(evaluation)
    if as_json:
        document = kind.document(evaluation, quality) | ({"interrupted": True} if interrupted else {})
        write_json(_NUMBERS.sub(_on_one_line, to_json(document)) + "\n")
    else:
        kind.show(evaluation, quality)
    if plot is not None:
        _plot(evaluation, quality, kind, plot, theme)
    raise typer.Exit(INTERRUPTED if interrupted else int(bool(evaluation.failures)))


def _plot(evaluation: Evaluation, quality: Any, kind: Kind[Evaluation], plot: Path, theme: ThemeName) -> None:
    from condconv_serve.routing.picture import look_of
    from condconv_serve.routing.provenance import Provenance

    look = look_of(plot, theme=theme, made_by=Provenance.of(evaluation.manifest, command_line()))
    title = f"{evaluation.manifest.name}/{evaluation.manifest.version}"
    kind.draw(quality, evaluation.labels, plot, look, title=title)
    note(f"wrote {plot}")


class _Progress(Generic[Evaluation]):
    """Shows how far it is: a bar on a terminal, a line for every tenth elsewhere."""

    def __init__(self, total: int, so_far: Callable[[Evaluation], str]) -> None:
        columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[so_far]}"))
        self._progress = SilentProgress(
            *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
        )
        self._so_far = so_far
        self._task = self._progress.add_task("", total=total, so_far="")
        self._tenth = 0

    def __enter__(self) -> _Progress[Evaluation]:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, evaluation: Evaluation) -> None:
        """Show what is done."""
        so_far = self._so_far(evaluation)
        self._progress.update(self._task, completed=evaluation.done, so_far=so_far)
        tenth = 10 * evaluation.done // evaluation.total
        if not err.is_terminal and tenth > self._tenth and evaluation.total >= _LINES_FROM:
            self._tenth = tenth
            note(f"{evaluation.done} of {evaluation.total} images{f', {so_far}' if so_far else ''}")


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"
