"""Commands in the documentation that can be judged without running them: syntax, options, targets and files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import yaml

from condconv_serve.cli import app
from tests.docs.pages import (
    NOT_COMPARED,
    NOT_RUN,
    PAGES,
    ROOT,
    begins,
    blocks_of,
    commands_of,
    inline_code_of,
    simple_commands,
    why_not_run,
)

pytestmark = pytest.mark.files

LANGUAGES = {"sh", "json", "python", "yaml", "nginx", "text"}
TOP = ("benchmarks", "deploy", "docs", "examples", "model_store", "requirements", "service", "tests")
"""Directories of the repository; paths in them must exist."""
EVERY = [*PAGES, "CHANGELOG.md"]


def shell(page: str) -> Iterator[str]:
    """Every command of a page: of its blocks, and in its text."""
    for block in blocks_of(page):
        if block.language == "sh":
            yield from commands_of(block)
    for code in inline_code_of(page):
        if re.match(r"(condconv|make|python|curl|docker-compose) [\w./'-]", code):
            yield code


@pytest.mark.parametrize("page", EVERY)
def test_blocks_are_what_they_say(page):
    for block in blocks_of(page):
        assert block.language in LANGUAGES, f"{block}: say what it is: {', '.join(sorted(LANGUAGES))}"
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            assert all(yaml.safe_load_all(block.text))
        elif block.language == "python":
            compile(block.text, str(block), "exec")
        elif block.language == "sh":
            commands_of(block)


def wrong_options(words: list[str]) -> str | None:
    """What is wrong with the words after `condconv`; None if nothing is."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            return None if name.isupper() or name == "..." else f"there is no command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        option = word.split("=")[0]
        if option.startswith("--") and len(option) > 2 and option not in known | {"--help", "--version"}:
            return f"{command.name} has no option {option}"
    return None


@pytest.mark.parametrize("page", EVERY)
def test_commands_and_options_of_condconv_exist(page):
    wrong = []
    for command in shell(page):
        for words in simple_commands(command):
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words and words[0].removeprefix(".venv/bin/") == "condconv" and (why := wrong_options(words[1:])):
                wrong.append(f"{command}: {why}")
    assert not wrong, f"{page}: " + "; ".join(wrong)


def test_wrong_options_are_found():
    assert wrong_options(["predict", "a.jpg", "--top-k", "3"]) is None
    assert wrong_options(["predict", "--top"]) == "predict has no option --top"
    assert wrong_options(["models", "nonesuch"]) == "there is no command nonesuch"


@pytest.mark.parametrize("page", EVERY)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {"ARGS"}
    for command in shell(page):
        for words in simple_commands(command):
            if words[0] != "make":
                continue
            for word in words[1:]:
                name, assigned, _ = word.partition("=")
                known = variables if assigned else targets
                assert name in known, f"{page}: {command}: there is no {name}"


@pytest.mark.parametrize("page", EVERY)
def test_files_exist(page):
    code = [*inline_code_of(page), *shell(page)]
    words = {word.strip("@'\"") for text in code for word in re.split(r"[\s=()]+", text)}
    named = {
        word for word in words if word.split("/")[0] in TOP and "/" in word and not re.search(r"[<*{….]{2}|[<*{]", word)
    }
    missing = sorted(word for word in named if not (ROOT / word.split(":")[0]).exists())
    assert not missing, f"{page}: there is no {', '.join(missing)}"


def test_what_is_not_run_is_still_in_the_docs():
    commands = [
        command
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "sh"
        for command in commands_of(block)
    ]
    gone = [start for start in NOT_RUN if not any(begins(command, start) for command in commands)]
    assert not gone, f"take these out of NOT_RUN: {gone}"
    texts = [(block.page, block.text) for page in PAGES for block in blocks_of(page)]
    gone = [key for key in NOT_COMPARED if not any(page == key[0] and text.startswith(key[1]) for page, text in texts)]
    assert not gone, f"take these out of NOT_COMPARED: {gone}"


def test_little_is_left_out():
    """Most commands are run; whoever adds to the table sees this."""
    commands = [
        command
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "sh"
        for command in commands_of(block)
    ]
    run = [command for command in commands if why_not_run(command) is None]
    assert len(run) >= 0.6 * len(commands)


@pytest.mark.parametrize(("text", "words"), [("a 'b c' | d > e && f; g <h", [["a", "b c"], ["d"], ["f"], ["g"]])])
def test_shell_is_taken_apart(text, words):
    assert list(simple_commands(text)) == words
    assert shlex.split(text)
