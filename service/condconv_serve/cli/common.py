"""What the commands share: options, settings, and how expected errors are shown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

import typer
from pydantic import ValidationError

from condconv_serve.cli.output import note, print_failure
from condconv_serve.domain import readable
from condconv_serve.errors import ServiceError
from condconv_serve.offline.interrupts import Terminated
from condconv_serve.settings import PREFIX, Settings, is_service_link, unknown_variables
from condconv_serve.validation import wanted_values

Arguments = ParamSpec("Arguments")

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a command that is ended by Ctrl-C or by SIGTERM, as the shell shows them."""

Store = Annotated[
    Path | None,
    typer.Option(
        "--model-store", help="Directory with the bundles. Default: model_store.", envvar="CONDCONV_MODEL_STORE"
    ),
]
MODEL_FORM = "NAME[/VERSION]"
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar=MODEL_FORM,
        help="Model to use; a version may be an alias. Without one: what a server answers with. Default: the default "
        "model of the store.",
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar=MODEL_FORM, help="Model. A version may be an alias. Without one: what a server answers with."
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Files, directories, globs, or - for an image from standard input."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonAnswer = Annotated[bool, typer.Option("--json", help="Print JSON, in the shape of the HTTP answer.")]

MaybeServer = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Ask this server, such as http://127.0.0.1:8000. Default: compute here."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="A key, if the server needs one.", envvar="CONDCONV_API_KEY", show_envvar=True),
]

ThemeOption = Annotated[
    Literal["auto", "light", "dark"],
    typer.Option("--theme", help="Colours of pictures. auto: an .svg or a page turns dark where its viewer is dark."),
]


def command_line() -> str:
    """What was typed, to say what made a file."""
    return readable(shlex.join(["condconv", *sys.argv[1:]]))


def friendly(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Show expected errors as a line on stderr, and exit with 1; after Ctrl-C exit with 130, after SIGTERM with 143."""

    @wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ServiceError as error:
            if (interrupt := _interrupt_behind(error)) is not None:
                note("interrupted")
                raise typer.Exit(code_of(interrupt)) from None
            print_failure("error", error)
            raise typer.Exit(1) from error
        except OSError as error:  # a full disk, say
            print_failure("error", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            note("interrupted")
            raise typer.Exit(code_of(interrupt)) from None

    return wrapped


def code_of(interrupt: KeyboardInterrupt) -> int:
    """Exit code of a command that was interrupted."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that led to an error, if any: libraries of C make an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def read_settings(**given: Any) -> Settings:
    """Settings from the environment; the command line's own come first. Wrong and unknown ones end the command."""
    problems = []
    for name, nearest in unknown_variables():
        meant = f" Did you mean {nearest}?" if nearest else ""
        problems.append(f"{name}: there is no such setting.{meant}")
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems += [f"{PREFIX}{name.upper()}: {wanted}" for name, wanted in wanted_values(error)]
        if any(is_service_link(str(item["input"])) for item in error.errors()):
            problems.append(
                "Kubernetes sets such variables for a Service whose name begins with condconv: set enableServiceLinks: "
                "false in the pod's spec."
            )
    if problems:
        for problem in problems:
            print_failure("error", problem)
        raise typer.Exit(2)
    return settings


def configure_log(settings: Settings, *, on_thread: bool = False) -> None:
    """Log as the settings say; for a server on a thread of its own."""
    from condconv_serve.telemetry.logs import configure_logging

    configure_logging(settings.log_level, settings.log_format, on_thread=on_thread)
