"""The command that trains, and how its progress is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from condconv_serve.cli.common import Store, friendly, read_settings
from condconv_serve.cli.output import SilentProgress, err, print_json, say

if TYPE_CHECKING:
    from condconv_serve.training import Start

app = typer.Typer()
_DECODING_FROM = 500


@app.command(
    "finetune", epilog="Example: [bold]condconv models finetune lite0-8e --data flowers/ --name flowers --epochs 5[/]"
)
@friendly
def finetune_model(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help=r"Model to start from, NAME\[/VERSION].")],
    data: Annotated[
        Path, typer.Option(help="Your images, in a folder per class. With --teacher, any folder of images.")
    ],
    name: Annotated[str, typer.Option(help="Name of the new model.")],
    version: Annotated[
        str | None, typer.Option(help="Version of the new bundle. Default: the next free number.")
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
            "steps.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 32,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="The highest learning rate. The rate rises at first, then falls along a cosine. Default: one that "
            "suits --train and --batch-size."
        ),
    ] = None,
    validation_split: Annotated[float, typer.Option(help="Share of the images to keep for validation.")] = 0.2,
    validation_data: Annotated[
        Path | None, typer.Option(help="Validate with these images instead. They are in a folder per class.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels per side. Default: as in the bundle.")] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment",
            help="Shift the training images a little and change their brightness. Default: unless the backbone is "
            "frozen, which then computes each image only once.",
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
    from condconv_serve.store import Catalog

    catalog = Catalog(settings.model_store)
    parent = catalog.find_named(bundle)
    master = None if teacher is None else catalog.find_named(teacher)
    from condconv_serve.runtime.tensorflow_import import import_tensorflow

    import_tensorflow()
    from condconv_serve.training import Augmentation, FinetuneRequest, finetune

    part = "head" if freeze_backbone else train
    shifts = part != "head" if augment is None else augment
    request = FinetuneRequest(
        bundle=parent,
        data=data,
        name=name,
        version=version,
        teacher=master,
        temperature=temperature,
        validation_data=validation_data,
        validation_split=validation_split,
        train=part,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augmentation=Augmentation(shift=shifts, mirror=shifts if mirror is None else mirror and augment is not False),
        seed=seed,
        resume=resume,
        restart=restart,
        max_pixels=settings.max_pixels,
    )
    distils = teacher is not None and validation_data is None  # otherwise validation knows the right classes
    try:
        with ProgressListener(err, distils=distils) as listener:
            finished = finetune(request, store=settings.model_store, listener=listener)
    except KeyboardInterrupt:
        say("Interrupted. To continue, run the same command with --resume.", console=err)
        raise typer.Exit(130) from None
    if as_json:
        print_json({"bundle": str(finished.path), "best_epoch": finished.best_epoch, "epochs": finished.history})
        return
    what = "agreement" if distils else "accuracy"
    say(
        f"wrote {finished.path}: validation {what} {finished.best.accuracy:.1%} after epoch {finished.best_epoch}, "
        f"{finished.start.accuracy:.1%} at the start"
    )


class ProgressListener:
    """Shows a run: a bar per stage on a terminal, and a line per epoch everywhere."""

    def __init__(self, console: Console, *, distils: bool) -> None:
        """Show a run; `distils`: what is validated is agreement with a teacher."""
        self._console = console
        self._epochs = 0
        self._distils = distils
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
        validation = epoch.validation
        figures = [
            f"epoch {epoch.number}/{self._epochs}" if epoch.number else "start",
            f"loss {epoch.training_loss:.3f}" if epoch.training_loss is not None else None,
            f"validation loss {validation.loss:.3f}",
            f"{'agreement' if self._distils else 'accuracy'} {validation.accuracy:.1%}",
            f"routing entropy {validation.mean_entropy:.3f}" if validation.entropy else None,
            f"between classes {validation.mean_between_classes:.1%}" if validation.entropy else None,
            f"{epoch.seconds:.0f} s",
        ]
        self._print("  ".join(figure for figure in figures if figure))

    def _show(self, what: str, done: int, total: int, *, loss: str = "") -> None:
        if self._task is None:
            self._task = self._progress.add_task(what, total=total, loss=loss)
        self._progress.update(self._task, description=what, completed=done, total=total, loss=loss)

    def _print(self, *parts: str | tuple[str, str]) -> None:
        say(*parts, console=self._console)
