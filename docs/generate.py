"""Writes the parts of the documentation that follow from the code; `--check` only says whether they are up to date."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from condconv_serve.cli import app
from condconv_serve.errors import ServiceError
from condconv_serve.fronts import oip, tfserving
from condconv_serve.fronts.context import AppContext, BodyLimits
from condconv_serve.fronts.gatekeeper import Gatekeeper
from condconv_serve.fronts.native import create_app
from condconv_serve.fronts.native.problems import STATUS
from condconv_serve.runtime.tensorflow_import import import_tensorflow
from condconv_serve.serving.readiness import Readiness
from condconv_serve.settings import Settings
from condconv_serve.telemetry.metrics import Metrics

DOCS = Path(__file__).parent


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def settings_table() -> str:
    """Every setting with its default."""
    rows = [
        (
            f"`CONDCONV_{name.upper()}`",
            f"`{_as_set(field.default)}`" if field.default not in (None, "", ()) else "",
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
    return table(("variable", "default", "what it does"), rows)


def _as_set(value: Any) -> str:
    """A value as one would set it: `60`, not `60.0`; `true`, not `True`."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def metrics_table() -> str:
    """Every metric with its question."""
    rows = []
    for name, kind, labels, documentation in Metrics(CollectorRegistry()).describe():
        what, _, question = documentation.rpartition(". ")
        rows.append((f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), what, question))
    return table(("metric", "type", "labels", "what it counts", "the question it answers"), rows)


def problems_table() -> str:
    """Every error with its status."""
    rows, pending = [], [ServiceError]
    while pending:
        error = pending.pop(0)
        pending[:0] = error.__subclasses__()
        if error.slug not in STATUS:
            raise SystemExit(
                f"{error.__name__} has no status: add {error.slug!r} to STATUS in fronts/native/problems.py."
            )
        if error is ServiceError or "slug" in vars(error):
            rows.append((str(STATUS[error.slug]), f"`{error.slug}`", (error.__doc__ or "").strip().splitlines()[0]))
    return table(("status", "slug", "when"), sorted(rows))


def nowhere() -> AppContext:
    """What fronts work with, though nobody will ask them anything."""
    nothing: Any = None
    return AppContext(
        images=nothing,
        models=nothing,
        metrics=Metrics(CollectorRegistry()),
        exposition=nothing,
        limits=BodyLimits(max_body_bytes=1, max_images=1),
        gatekeeper=Gatekeeper(Readiness(lambda: None)),
        readiness=Readiness(lambda: None),
        versions=nothing,
    )


def routes_table(app: FastAPI) -> str:
    """Every route of a front with its summary."""
    rows = [
        (f"`{method.upper()} {path}`", operation["summary"])
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    return table(("route", "what it does"), rows)


def native_routes() -> str:
    """Our own interface's routes."""
    nothing: Any = None
    return routes_table(create_app(nowhere(), lifespan=nothing))


def open_inference_routes() -> str:
    """The routes of the Open Inference Protocol."""
    return routes_table(oip.create_app(nowhere()))


def tensorflow_serving_routes() -> str:
    """The routes of TensorFlow Serving's REST API."""
    return routes_table(tfserving.create_app(nowhere()))


def architectures_table() -> str:
    """Every registered architecture with its cost."""
    import_tensorflow()
    from condconv_serve.offline.architectures import describe_architectures

    rows = [
        (
            one.name,
            str(one.experts or "-"),
            str(one.image_size),
            f"{one.parameters / 1e6:.1f}M",
            f"{one.multiply_adds / 1e6:.0f}M",
        )
        for one in describe_architectures()
    ]
    return table(("architecture", "experts", "pixels", "parameters", "multiply-adds"), rows)


def cli_reference() -> str:
    """Every command with its arguments and options."""
    parts = []
    pending: list[tuple[str, Any]] = [("condconv", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop(0)
        subcommands = getattr(command, "commands", {})
        pending[:0] = [(f"{name} {sub}", subcommands[sub]) for sub in subcommands]
        if subcommands:
            continue
        rows = [
            (", ".join(f"`{opt}`" for opt in _spelling(parameter)), _meaning(parameter))
            for parameter in command.params
            if parameter.name != "help"
        ]
        example = f"\n{_plain(command.epilog)}\n" if command.epilog else ""
        parts.append(f"## `{name}`\n\n{_plain(command.help)}\n{example}\n{table(('argument', 'meaning'), rows)}")
    return "\n\n".join(parts)


def _spelling(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _meaning(parameter: Any) -> str:
    text, default = _plain(parameter.help), parameter.default
    if default is True and parameter.secondary_opts:
        default = parameter.opts[0]
    if default is not None and default is not False and "Default: " not in text:
        text += f" Default: {_as_set(default)}."
    return f"{text} Variable: `{parameter.envvar}`." if parameter.envvar else text


def _plain(text: str) -> str:
    return re.sub(r"\[/?bold\]|\[/\]", "`", text)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "operations.md": {"settings": settings_table, "metrics": metrics_table},
    "api.md": {"routes": native_routes, "problems": problems_table},
    "cli.md": {"cli": cli_reference},
    "open-inference-protocol.md": {"open-inference-routes": open_inference_routes},
    "tensorflow-serving.md": {"tensorflow-serving-routes": tensorflow_serving_routes},
    "models.md": {"architectures": architectures_table},
}


def main() -> int:
    """Rewrite the generated parts, or with `--check` report those that are out of date."""
    check = "--check" in sys.argv
    outdated = []
    for name, parts in PARTS.items():
        file = DOCS / name
        old = new = file.read_text(encoding="utf-8")
        for part, generate in parts.items():
            pattern = re.compile(rf"(<!-- generated: {part} -->\n).*?(<!-- end -->)", re.DOTALL)
            if not pattern.search(new):
                raise SystemExit(f"{name} has no place for the generated part {part!r}.")
            text = generate()
            new = pattern.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", new)
        if new != old:
            outdated.append(name)
            if not check:
                file.write_text(new, encoding="utf-8")
    if check and outdated:
        print(f"Out of date: {', '.join(outdated)}. Run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
