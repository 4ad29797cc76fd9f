"""Commands that fetch published checkpoints, and how they show their progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from condconv_serve.cli.common import INTERRUPTED, Json, Store, friendly, read_settings
from condconv_serve.cli.output import err, note, print_failure, print_json, say
from condconv_serve.cli.tables import print_listing
from condconv_serve.settings import Settings

if TYPE_CHECKING:
    from condconv_serve.store.pull.download import Limits, Reporter
    from condconv_serve.store.pull.published import Catalogue, Checkpoint
    from condconv_serve.store.pull.reach import Unreachable

CatalogueOption = Annotated[
    str | None,
    typer.Option(
        "--catalogue",
        metavar="FILE|URL",
        help="Your own catalogue. Default: the published checkpoints.",
        envvar="CONDCONV_CATALOGUE",
        show_envvar=False,
    ),
]


app = typer.Typer()


@app.command(
    "pull",
    epilog="Example: [bold]condconv models pull efficientnet-condconv-b0-8e[/]. "
    "[bold]condconv models catalogue[/] lists what there is.",
)
@friendly
def pull_model(
    checkpoint: Annotated[str, typer.Argument(metavar="NAME", help="Name of a checkpoint in the catalogue.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: the name of the checkpoint.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The checkpoint's file, if you have downloaded it yourself. No network is needed then.",
        ),
    ] = None,
    accept_changed: Annotated[
        bool,
        typer.Option(
            "--accept-changed",
            help="Download again, and accept the file even if it differs from the one of the first pull.",
        ),
    ] = False,
    catalogue: CatalogueOption = None,
    model_store: Store = None,
) -> None:
    """Download a published checkpoint and make a bundle of it."""
    from condconv_serve.runtime.tensorflow_import import import_tensorflow
    from condconv_serve.store.pull.pulling import PullRequest, pull
    from condconv_serve.store.pull.reach import Unreachable

    settings = read_settings(model_store=model_store, catalogue=catalogue)
    found = _read(settings).find(checkpoint)

    request = PullRequest(
        checkpoint=found,
        name=name or found.name,
        version=version,
        cache=settings.cache_dir,
        mirror=settings.mirror,
        limits=_limits(settings),
        accept_changed=accept_changed,
        quiet=not err.is_terminal,
        file=file,
        shipped=settings.catalogue is None,
    )
    try:
        with _reporter() as reporter:
            pulled = pull(request, store=settings.model_store, reporter=reporter, prepare=import_tensorflow)
    except Unreachable as error:
        print_failure("error", error)
        _advise(error, found, settings)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        note("interrupted: no bundle was written. What was received is kept; run the same command to go on from there")
        raise typer.Exit(INTERRUPTED) from None
    say(f"wrote {pulled.path}" if pulled.new else f"{pulled.path} is there already")


@app.command("catalogue", epilog="Example: [bold]condconv models catalogue --json[/]")
@friendly
def list_catalogue(as_json: Json = False, catalogue: CatalogueOption = None) -> None:
    """List the checkpoints that can be pulled."""
    found = _read(read_settings(catalogue=catalogue))
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    columns = ("name", "architecture", "published top-1", "licence", "size", "from")
    print_listing(columns, [_row(checkpoint) for checkpoint in found.checkpoints])


def _advise(error: Unreachable, checkpoint: Checkpoint, settings: Settings) -> None:
    """Say what can be done without a way to the network."""
    hub = checkpoint.source.kind == "hub"
    mirror = "HF_ENDPOINT" if hub else "CONDCONV_MIRROR"
    note("What you can do:")
    if error.proxy is not None:
        note("- The proxy comes from HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: correct it. NO_PROXY names what needs none.")
    else:
        note("- Behind a proxy: set HTTPS_PROXY to its address, such as http://proxy.example.org:3128.")
    if settings.mirror is not None and not hub:
        note(f"- CONDCONV_MIRROR is {settings.mirror}: correct it.")
    else:
        note(f"- With a mirror that you can reach: set {mirror} to its address.")
    note(f"- Without a network: download {checkpoint.source.address} elsewhere, bring it here, and run")
    note(f"  condconv models pull {checkpoint.name} --file {checkpoint.source.address.rpartition('/')[2]}")


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (
        checkpoint.name,
        checkpoint.architecture.name,
        next((f"{measured.top1:.1%}" for measured in checkpoint.accuracy if measured.top1 is not None), "unknown"),
        checkpoint.licence,
        f"{checkpoint.size / 1e6:.1f} MB" if checkpoint.size else "unknown",
        checkpoint.source.page,
    )


def _read(settings: Settings) -> Catalogue:
    from condconv_serve.store.pull.published import read_catalogue

    return read_catalogue(settings.catalogue, limits=_limits(settings))


def _limits(settings: Settings) -> Limits:
    from condconv_serve.store.pull.download import Limits

    return Limits(max_bytes=settings.max_download_bytes, connect_timeout=settings.connect_timeout)


@contextmanager
def _reporter() -> Iterator[Reporter]:
    """A progress bar on a terminal, a line now and then elsewhere; on stderr."""
    if not err.is_terminal:
        yield _Lines()
        return
    columns: tuple[Any, ...] = (
        TextColumn("downloading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=err)
    try:
        yield _Bar(progress)
    finally:
        progress.stop()


class _Bar:
    """It appears with the first bytes, since the Hub's library shows its own bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def received(self, count: int, total: int | None) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("download", total=total)
        self._progress.update(self._task, completed=count, total=total)

    def note(self, text: str) -> None:
        say(text, console=self._progress.console)


class _Lines:
    """A line for every tenth of the file, or every ten seconds if its size is unknown."""

    def __init__(self) -> None:
        self._tenth = -1
        self._spoke = 0.0

    def received(self, count: int, total: int | None) -> None:
        tenth = 10 * count // total if total else -1
        now = time.monotonic()
        if tenth == self._tenth and (total or now - self._spoke < 10):
            return
        self._tenth, self._spoke = tenth, now
        self.note(f"{count / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB"))

    def note(self, text: str) -> None:
        say(text, console=err)
