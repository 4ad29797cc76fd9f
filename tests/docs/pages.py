"""The pages of documentation, their blocks of code, and the commands in them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))))
SERVES = re.compile(r"(^|\s)(make serve|condconv serve)\b")
"""Commands that go on until they are stopped."""

NOT_RUN = {
    "make test": "is what runs this test, or takes as long as all the others",
    "make test-quick": "is what runs this test, or takes as long as all the others",
    "make check": "is what runs this test, or takes as long as all the others",
    "make bench": "installs PyTorch and others, and takes 20 minutes",
    "make bench-native": "takes an hour",
    "make test ARGS=tests/fault/test_engine_faults.py": "is in the suite itself",
    "condconv models verify --precision bfloat16": "needs a CPU with native bfloat16",
    "condconv models pull": "downloads from a site that may be out of reach",
    "condconv models import": "needs a checkpoint of hundreds of megabytes; the importers have tests of their own",
    "condconv models finetune lite0-small": "needs a student of the same classes; distillation has tests of its own",
    "condconv detect street.jpg": "needs a detector, which has tests of its own",
    "curl -F image=@street.jpg": "needs a detector, which has tests of its own",
    "python benchmarks/trade_off.py": "trains for hours, on data of your own",
    "kubectl": "needs a cluster; make check looks at the manifests",
    "pip install 'condconv-serve[cpu,ray]'": "needs a Ray cluster; make test-ray starts one",
    "ray start": "needs a Ray cluster; make test-ray starts one",
    "serve deploy": "needs a Ray cluster; make test-ray starts one",
    "docker": "needs a Docker engine; make test-docker runs the image and the Compose project",
}
"""Commands that begin so are only looked at, and why."""

CLIENTS = ("ovmsclient", "tensorflow_serving", "tritonclient")
"""Packages of other projects' clients. Python that imports one is only looked at where it isn't installed."""

DETECTOR = "my-detector"
"""Python that names it is only looked at; detectors have tests of their own."""

NOT_COMPARED = {
    ("docs/python.md", "ImageDetections('street.jpg'"): "what a detector finds",
    ("docs/cli.md", "street.jpg  640 x 480"): "what a detector's answer looks like",
    ("docs/api.md", '{"model": {"name": "my-detector"'): "what a detector answers",
    ("docs/routing.md", '{"name": "block_8 without expert 2"'): "what a detector's ablation answers",
    ("docs/models.md", '{"schema_version"'): "a file that you write",
    ("docs/models.md", "wrote model_store/lite0/1"): "what an import prints that isn't run",
    ("docs/routing.md", '{"images"'): "a request",
    ("docs/batch-jobs.md", "machine 1: condconv predict"): "commands of several machines",
    ("docs/security.md", '{"keys"'): "a file that a command writes",
}
"""Blocks, by their beginning, that no command before them prints, and what they are."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page, line, language and text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    return [
        Block(page, token.map[0] + 1 if token.map else 0, token.info.strip(), token.content)
        for token in tokens
        if token.type in ("fence", "code_block")
    ]


def inline_code_of(page: str) -> list[str]:
    """What stands in backquotes in a page's text."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    return [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]


def commands_of(block: Block) -> list[str]:
    """The commands of a block of shell, each with its continued lines."""
    found, waiting = [], ""
    for line in block.text.splitlines():
        waiting += line + "\n"
        if is_complete(waiting):
            if shlex.split(waiting, comments=True):
                found.append(waiting.strip())
            waiting = ""
    assert not waiting.strip(), f"{block}: unfinished: {waiting}"
    return found


def is_complete(text: str) -> bool:
    """Whether text is a whole piece of shell."""
    if text.rstrip().endswith("\\"):
        return False
    looked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    return looked.returncode == 0 and "here-document" not in looked.stderr  # of which Bash only warns


def why_not_run(command: str) -> str | None:
    """Why a command is only looked at; None if it is run."""
    return next((why for start, why in NOT_RUN.items() if begins(command, start)), None)


def begins(command: str, start: str) -> bool:
    """Whether a command is one of those: `make test` isn't `make test-quick`, nor `make test ARGS=...`."""
    words = shlex.join(shlex.split(command, comments=True)) if start.startswith("make ") else command
    return (
        words == start
        if start.startswith("make ")
        else re.match(rf"(\.venv/bin/)?{re.escape(start)}", words) is not None
    )


def lacks_what_it_needs(text: str) -> bool:
    """Whether Python imports a client that isn't installed here, or asks a detector, which nobody has trained."""
    return DETECTOR in text or any(
        re.search(rf"^(import|from) {name}\b", text, re.M) and find_spec(name) is None for name in CLIENTS
    )


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a line of shell, without redirections: pipes and lists taken apart."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;()"):
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)


def is_expected(block: Block) -> bool:
    """Whether a block shows what the command before it prints."""
    if block.language not in ("json", "text"):
        return False
    return not any(block.page == page and block.text.startswith(start) for page, start in NOT_COMPARED)


def fails(block: Block | None) -> bool:
    """Whether a block shows an error's answer."""
    return block is not None and block.language == "json" and "status" in json.loads(block.text)
