"""The command line as a whole: its groups, and the commands outside of them."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from condconv_serve import __version__
from condconv_serve.cli import bench, evaluate, finetune, images, keys, models, pull, routing_state, versions
from condconv_serve.cli.common import Store, configure_log, friendly, read_settings
from condconv_serve.cli.output import end_for, flush, say
from condconv_serve.cluster.workers.fronts import count_fronts

app = typer.Typer(
    name="condconv",
    help="Serve CondConv image classifiers and detectors, and see which experts they use.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> NoReturn:
    """Run the command line; exits 0 for success, 1 for failure, 2 for wrong usage, 130 for Ctrl-C, 143 for SIGTERM."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # labels may have letters that a terminal doesn't know
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except OSError as error:  # commands tell of theirs, so this is of the text about their use
        end_for(error)
    finally:
        flush()
    sys.exit(0)


def _open_closed_streams() -> None:
    """Open standard streams that were closed (`2>&-`): a socket could get their numbers, and so what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest free number is the one that is missing.
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r" if number == 0 else "w"))  # noqa: SIM115


def _version(value: bool) -> None:
    if value:
        say(f"condconv-serve {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=friendly(_version))] = False,
) -> None:
    """Serve CondConv image classifiers and detectors, and see which experts they use."""


@app.command(epilog="Example: [bold]condconv serve --port 9000 --model-store ./models[/]")
@friendly
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; :: is every one. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on. 0 takes a free one. Default: 8000.")
    ] = None,
    model_store: Store = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Processes that speak HTTP and gRPC, beside one that computes. Default: 1, one process does all.",
        ),
    ] = None,
) -> None:
    """Serve all models of the store over HTTP.

    Every other setting is an environment variable CONDCONV_<NAME>; docs/operations.md lists them.
    """
    settings = read_settings(host=host, port=port, model_store=model_store, workers=workers)
    configure_log(settings, on_thread=True)
    if (fronts := count_fronts(settings.workers)) > 1:
        from condconv_serve.cluster.workers.supervisor import supervise

        supervise(settings, fronts=fronts)
    else:
        from condconv_serve.serve import serve as run

        run(settings)


app.add_typer(images.app)
for group in (finetune, evaluate, pull, versions):
    models.app.add_typer(group.app)
app.add_typer(routing_state.app)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")
