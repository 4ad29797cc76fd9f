"""What the commands share: options, consoles, and how results and failures are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.errors import ServiceError
from service.settings import Settings

Arguments = ParamSpec("Arguments")
out, err = Console(emoji=False), Console(stderr=True, emoji=False)

Store = Annotated[
    Path | None, typer.Option("--model-store", help="Directory with the bundles.", envvar="CONDCONV_MODEL_STORE")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to use; the default one if absent.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, directories, or globs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, in the shape of the HTTP answer.")]


def friendly(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn expected errors into a line on stderr and exit code 1."""

    @wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ServiceError as error:
            print_failure("error", error)
            raise typer.Exit(1) from error
        except OSError as error:  # a full disk, say
            print_failure("error", f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            raise typer.Exit(1) from error

    return wrapped


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, with what the command line gives on top."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for item in error.errors():
            name = "_".join(str(part) for part in item["loc"][:1]).upper()
            problem = f"CONDCONV_{name}: {item['msg']}, not {item['input']!r}"
            err.print(f"[bold red]error:[/] {escape(problem)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def configure_log(settings: Settings) -> None:
    """Log as the settings say."""
    from service.telemetry import configure_logging

    configure_logging(settings.log_level, settings.log_format)


def print_failure(what: str | None, why: object) -> None:
    """Print one failure as a line on stderr."""
    err.print(f"[bold red]{escape(str(what))}:[/] {escape(str(why))}", highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a document as JSON on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_table(table: Table) -> None:
    """Print a table; into a file or a pipe in full, since there is no width to fit it into."""
    console = out if out.is_terminal else Console(width=1000, emoji=False)
    console.print(table)
