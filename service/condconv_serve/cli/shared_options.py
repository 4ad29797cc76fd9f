"""The options that all commands about images share: where images are answered, and what becomes of the answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from condconv_serve.cli.answering import Question, Where
from condconv_serve.cli.batch import Batch, write_batch
from condconv_serve.cli.common import ApiKey, JsonAnswer, MaybeServer, ModelOption, Store
from condconv_serve.cli.results import Answer, Results, TextResults, as_json
from condconv_serve.domain import ImageResult
from condconv_serve.errors import InvalidParameter

Lines = Annotated[bool, typer.Option("--json-lines", help="Print a JSON object per image, each on a line of its own.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Write a row per image to this file (.parquet, .jsonl or .csv) and print nothing. After an interruption "
        "the same command goes on.",
    ),
]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, max=256, help="With --output: requests that are under way at once.")
]
Patience = Annotated[
    float,
    typer.Option(
        "--patience",
        min=1,
        max=10**9,  # as the client
        metavar="SECONDS",
        help="With --output: seconds to wait for a server that is busy or away.",
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="With --output: ask again about images that failed in an earlier run.")
]
Restart = Annotated[bool, typer.Option("--restart", help="With --output: forget the rows of earlier runs.")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="With --output: answer only the I-th of N shares of the images, as one of N machines.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What was given of these options, in the order in which help shows them."""

    json_document: JsonAnswer = False
    json_lines: Lines = False
    output: Output = None
    concurrency: Concurrency = 4
    patience: Patience = 300.0
    retry_failed: RetryFailed = False
    restart: Restart = False
    shard: ShardOption = None
    model: ModelOption = None
    model_store: Store = None
    server: MaybeServer = None
    api_key: ApiKey = None

    @property
    def where(self) -> Where:
        """Where images are answered."""
        return Where(model=self.model, model_store=self.model_store, server=self.server, api_key=self.api_key)

    def results(
        self, entry: Callable[[ImageResult[Answer]], dict[str, Any]], show: Callable[[str, Answer], None]
    ) -> Results[Answer]:
        """What prints results: as JSON what `entry` makes of them, or else for people what `show` prints."""
        return as_json(entry, document=self.json_document, lines=self.json_lines) or TextResults(show)

    def exit_with_rows(
        self, images: Sequence[str], question: Question[Any], instead_of: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a question about images as rows of a file, and end the command, if `--output` was given.

        Args:
            images: files, folders or globs.
            question: what is asked.
            instead_of: what the command alone has that can't be given beside `--output`, by option.

        Raises:
            typer.Exit: rows were written. InvalidParameter: options don't go together. Otherwise as `write_batch`.
        """
        options = {name: getattr(self, name) for name in _FOR_OUTPUT}
        if self.output is None:
            for field in fields(self):
                if field.name in options and options[field.name] != field.default:
                    name = field.name.replace("_", "-")
                    raise InvalidParameter(f"--{name} is for --output: name the file to write.")
            return
        others = {"--json": self.json_document, "--json-lines": self.json_lines, **(instead_of or {})}
        for name, value in others.items():
            if value:
                raise InvalidParameter(f"Give --output or {name}, not both.")
        raise typer.Exit(write_batch(images, Batch(output=self.output, **options), self.where, question))


_FOR_OUTPUT = frozenset(field.name for field in fields(Batch)) - {"output"}


def takes_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options after its own. It gets them as one parameter, `shared`."""
    hints = get_type_hints(SharedOptions, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(SharedOptions)
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "shared"]

    @wraps(command)
    def wrapped(**given: Any) -> None:
        shared = SharedOptions(**{option.name: given.pop(option.name) for option in options})
        command(**given, shared=shared)

    wrapped.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
    return wrapped
