"""No function takes more than eight parameters: what goes together is a value of its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.files

PACKAGE = Path(__file__).parents[2] / "service" / "condconv_serve"
MOST = 8

EXEMPT = {
    "cli/bench.py bench_engine": "a Typer command: its parameters are the options of the command line",
    "cli/finetune.py finetune_model": "a Typer command: its parameters are the options of the command line",
    "cli/models.py import_model": "a Typer command: its parameters are the options of the command line",
    "inference/batching/batcher.py __init__": "a part that lives as long as the service, put together in one place",
    "serving/store_follower.py __init__": "a part that lives as long as the service, put together in one place",
    "nn/experts.py __init__": "a Keras layer, whose configuration is the list of its parameters",
    "offline/bench.py bench_engine": "the options of condconv bench, passed on",
}
"""Functions that may have more, and why."""


def long_lists(source: str) -> Iterator[tuple[str, int]]:
    """The functions with too many parameters and how many these are; `self` and `cls` don't count."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            optional = [parameter for parameter in (given.vararg, given.kwarg) if parameter is not None]
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *optional]
            count = sum(parameter.arg not in ("self", "cls") for parameter in named)
            if count > MOST:
                yield node.name, count


def found() -> dict[str, int]:
    return {
        f"{file.relative_to(PACKAGE).as_posix()} {name}": count
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, count in long_lists(file.read_text(encoding="utf-8"))
    }


def test_no_function_takes_more_than_eight() -> None:
    sentences = [
        f"{name} takes {count} parameters; more than {MOST} become a frozen dataclass."
        for name, count in found().items()
        if name not in EXEMPT
    ]
    assert not sentences, "\n".join(sentences)


def test_every_exemption_is_needed() -> None:
    assert set(EXEMPT) <= set(found())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a, b, /, c, d, *, e, f, g, h): ...", []),
        ("def f(a, b, /, c, d, *rest, e, f, g, **more): ...", [("f", 9)]),
        ("class A:\n    async def f(self, a, b, c, d, e, f, g, h): ...", []),
        ("class A:\n    async def f(self, a, b, c, d, e, f, g, h, i): ...", [("f", 9)]),
        ("def outer():\n    def inner(a, b, c, d, e, f, g, h, i): ...", [("inner", 9)]),
    ],
)
def test_parameters_are_counted(source: str, expected: list[tuple[str, int]]) -> None:
    assert list(long_lists(source)) == expected
