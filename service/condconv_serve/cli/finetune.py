"""The command that trains, and how its progress is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from condconv_serve.cli.common import MODEL_FORM, Store, friendly, read_settings
from condconv_serve.cli.output import SilentProgress, err, print_json, say

if TYPE_CHECKING:
    from condconv_serve.training import Start

app = typer.Typer()
_DECODING_FROM = 500
_MAX_CLASSES = 8


@app.command(
    "finetune", epilog="Example: [bold]condconv models finetune lite0-8e --data flowers/ --name flowers --epochs 5[/]"
)
@friendly
def finetune_model(
    bundle: Annotated[str, typer.Argument(metavar=MODEL_FORM, help="Model to start from; a version may be an alias.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Your images, in a folder per class. With --teacher, any folder of images. For a detector, a folder "
            "with photos and their annotations, COCO's or Pascal VOC's."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the new model.")],
    version: Annotated[
        str | None, typer.Option(help="Version of the new bundle. Default: the next free number.")
    ] = None,
    task: Annotated[
        Literal["classification", "detection"] | None,
        typer.Option(
            help="What the new model is for. A classifier can become a detector. Default: what the bundle is for."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="For a detector: COCO's JSON file, a folder of Pascal VOC's XML files, or a list of their names. "
            "Default: what is in the --data folder, if that is clear."
        ),
    ] = None,
    validation_annotations: Annotated[
        Path | None, typer.Option(help="For a detector: annotations of the photos to validate with.")
    ] = None,
    head: Annotated[
        Literal["ssdlite", "ssd"],
        typer.Option(
            help="For a detector made of a classifier: predict with separable convolutions, or ordinary ones."
        ),
    ] = "ssdlite",
    experts: Annotated[
        int | None,
        typer.Option(min=2, help="For a detector: make a static network one with so many experts per layer first."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NAME[/VERSION]", help="Distil: learn the answers of this model.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="With --teacher: how much both models' answers are softened before they are compared.")
    ] = 2.0,
    train: Annotated[
        Literal["all", "experts", "routing", "head"],
        typer.Option(
            help="What is trained: all layers; experts, routers and head; routers and head; or only the head."
        ),
    ] = "all",
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="The same as --train head.")] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How often the network sees all images. Default: 10, or with a frozen backbone as many as make 200 "
            "steps; 40 for a detector.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step. Default: 32, or 16 for a detector.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="The highest learning rate. The rate rises at first, then falls along a cosine. Default: one that "
            "suits --train and --batch-size."
        ),
    ] = None,
    validation_split: Annotated[float, typer.Option(help="Share of the images to keep for validation.")] = 0.2,
    validation_data: Annotated[
        Path | None,
        typer.Option(help="Validate with these images instead. They are in a folder per class, or annotated."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Pixels per side. Default: as in the bundle; 320 for a detector made of a classifier."),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Shift the training images a little and change their brightness; for a detector, show parts of them "
            "in other sizes and colours. Default: unless a classifier's backbone is frozen, which then computes each "
            "image only once.",
        ),
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Mirror half of the training images. Turn it off for text or digits. Default: as --augment.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random numbers.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an interrupted run and start again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results of all epochs as JSON.")] = False,
    model_store: Store = None,
) -> None:
    """Adapt a bundle to your own images, or distil another model into it. This writes a new bundle."""
    if resume and restart:
        raise typer.BadParameter("you can continue a run or forget it, not both.", param_hint="--resume, --restart")
    if freeze_backbone and train not in ("all", "head"):
        raise typer.BadParameter(
            f"this trains the head only, but --train says {train}.", param_hint="--freeze-backbone, --train"
        )
    settings = read_settings(model_store=model_store)
    from condconv_serve.store import Catalog, open_bundle

    catalog = Catalog(settings.model_store)
    parent = catalog.find_named(bundle)
    detects = (task or open_bundle(parent).manifest.task) == "detection"
    _check_options(detects, teacher=teacher, annotations=annotations, more=validation_annotations, experts=experts)
    master = None if teacher is None else catalog.find_named(teacher)
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    common: dict[str, Any] = {
        "bundle": parent,
        "data": data,
        "name": name,
        "version": version,
        "validation_data": validation_data,
        "validation_split": validation_split,
        "train": "head" if freeze_backbone else train,
        "image_size": image_size,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        "resume": resume,
        "restart": restart,
        "max_pixels": settings.max_pixels,
        **({} if batch_size is None else {"batch_size": batch_size}),
    }
    if detects:
        found = {"annotations": annotations, "validation_annotations": validation_annotations}
        run = _detector_run({**common, **found, "head": head, "experts": experts}, augment=augment, mirror=mirror)
    else:
        distilled = {"teacher": master, "temperature": temperature}
        run = _classifier_run({**common, **distilled}, augment=augment, mirror=mirror)
    try:
        with ProgressListener(err, run.figures) as listener:
            finished = run.train(store=settings.model_store, listener=listener)
    except KeyboardInterrupt:
        say("Interrupted. To continue, run the same command with --resume.", console=err)
        raise typer.Exit(130) from None
    if as_json:
        print_json({"bundle": str(finished.path), "best_epoch": finished.best_epoch, "epochs": finished.history})
        return
    best, start = run.figures(finished.best)[1], run.figures(finished.start)[1]
    say(
        f"wrote {finished.path}: validation {best} after epoch {finished.best_epoch}, "
        f"{start.rpartition(' ')[2]} at the start"
    )


def _check_options(detects: bool, *, teacher: Any, annotations: Any, more: Any, experts: Any) -> None:
    """Refuse options of the other task."""
    given = {"--annotations": annotations, "--validation-annotations": more, "--experts": experts}
    wrong = {"--teacher": teacher} if detects else given
    if named := [name for name, value in wrong.items() if value is not None]:
        advice = "a detector has no teacher" if detects else "they are for detectors: add --task detection"
        raise typer.BadParameter(f"{advice}.", param_hint=", ".join(named))


@dataclass(frozen=True, slots=True)
class _Run:
    """A run to begin, and how its figures are shown: the loss first, then what matters most."""

    train: Callable[..., Any]
    figures: Callable[[Any], list[str]]


def _classifier_run(given: dict[str, Any], *, augment: bool | None, mirror: bool | None) -> _Run:
    from condconv_serve.training import Augmentation, FinetuneRequest, finetune

    shifts = given["train"] != "head" if augment is None else augment
    varied = Augmentation(shift=shifts, mirror=shifts if mirror is None else mirror and augment is not False)
    # Otherwise validation knows the right classes.
    what = "agreement" if given["teacher"] is not None and given["validation_data"] is None else "accuracy"

    def figures(validation: Any) -> list[str]:
        found = [f"validation loss {validation.loss:.3f}", f"{what} {validation.accuracy:.1%}"]
        if validation.entropy:
            found.append(f"routing entropy {validation.mean_entropy:.3f}")
            found.append(f"between classes {validation.mean_between_classes:.1%}")
        return found

    return _Run(partial(finetune, FinetuneRequest(**given, augmentation=varied)), figures)


def _detector_run(given: dict[str, Any], *, augment: bool | None, mirror: bool | None) -> _Run:
    from condconv_serve.training.detection import DetectionAugmentation, DetectorRequest, finetune_detector

    varies = augment is not False
    varied = DetectionAugmentation(
        mirror=varies and mirror is not False, colour=varies, crop=varies, zoom_out=2.0 if varies else 1.0
    )

    def figures(validation: Any) -> list[str]:
        found = [f"validation loss {validation.loss:.3f}", f"AP50 {validation.ap50:.1%}", f"AP {validation.ap:.1%}"]
        if 1 < len(validation.by_class) <= _MAX_CLASSES:
            shares = (
                f"{name} {'-' if share is None else f'{share:.0%}'}" for name, share in validation.by_class.items()
            )
            found.append(f"({', '.join(shares)})")
        if validation.entropy:
            found.append(f"routing entropy {validation.mean_entropy:.3f}")
        return found

    return _Run(partial(finetune_detector, DetectorRequest(**given, augmentation=varied)), figures)


class ProgressListener:
    """Shows a run: a bar per stage on a terminal, and a line per epoch everywhere."""

    def __init__(self, console: Console, figures: Callable[[Any], list[str]]) -> None:
        """Show a run; `figures` writes an epoch's figures on the validation images."""
        self._console = console
        self._epochs = 0
        self._figures = figures
        self._progress = SilentProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressListener:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._progress.stop()

    def decoding(self, done: int, total: int) -> None:
        """See `condconv_serve.training.Listener`."""
        if total >= _DECODING_FROM:
            self._show("decoding", done, total)

    def unreadable(self, failures: tuple[tuple[Path, str], ...], total: int) -> None:
        """See `condconv_serve.training.Listener`."""
        from condconv_serve.training.dataset import named

        self._print(("warning:", "bold yellow"), f" {len(failures)} of {total} images can't be read and are left out:")
        for line in named(failures):
            self._print(line)

    def features(self, done: int, total: int) -> None:
        """See `condconv_serve.training.Listener`."""
        self._show("computing features", done, total)

    def starting(self, start: Start) -> None:
        """See `condconv_serve.training.Listener`."""
        self._epochs = start.epochs
        self._print(
            f"{start.training} images to train, {start.validation} to validate, {start.classes} classes, "
            f"{start.parameters:,} trained parameters, learning rate {start.learning_rate:g}"
            + (f"; resumed after epoch {start.first_epoch}" if start.first_epoch else "")
        )

    def warning(self, text: str) -> None:
        """See `condconv_serve.training.Listener`."""
        self._print(("warning:", "bold yellow"), f" {text}")

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """See `condconv_serve.training.Listener`."""
        self._show(f"epoch {epoch}/{self._epochs}", step, steps, loss=f"loss {loss:.3f}")

    def epoch(self, epoch: Any) -> None:
        """See `condconv_serve.training.Listener`."""
        figures = [
            f"epoch {epoch.number}/{self._epochs}" if epoch.number else "start",
            *([f"loss {epoch.training_loss:.3f}"] if epoch.training_loss is not None else []),
            *self._figures(epoch.validation),
            f"{epoch.seconds:.0f} s",
        ]
        self._print("  ".join(figures))

    def _show(self, what: str, done: int, total: int, *, loss: str = "") -> None:
        if self._task is None:
            self._task = self._progress.add_task(what, total=total, loss=loss)
        self._progress.update(self._task, description=what, completed=done, total=total, loss=loss)

    def _print(self, *parts: str | tuple[str, str]) -> None:
        say(*parts, console=self._console)
