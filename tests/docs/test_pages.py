"""Runs every page of the documentation as somebody would who has just cloned the project, block by block.

Only making the virtual environment is left out: `.venv` is a stand-in that runs the clone's code with the packages of
the environment that runs the tests. Port 8000 is replaced by a free one, since others may use it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from condconv_serve.runtime.kernels.build import LIBRARY
from tests.docs.pages import (
    PAGES,
    ROOT,
    SERVES,
    Block,
    blocks_of,
    commands_of,
    fails,
    is_expected,
    lacks_what_it_needs,
    why_not_run,
)
from tests.free_ports import free_ports

pytestmark = pytest.mark.docs

SECONDS = 300
"""For one command."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what is in the repository, or would be after `git add`, with a stand-in for `.venv`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    copy = tmp_path / "condconv-serve"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    programs = copy / ".venv" / "bin"
    programs.mkdir(parents=True)
    python = f'#!/bin/sh\nPYTHONPATH={copy}/service exec {sys.executable} "$@"\n'
    condconv = f'#!/bin/sh\nexec {programs}/python -m condconv_serve "$@"\n'
    for name, script in (("python", python), ("condconv", condconv)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (copy / ".venv" / ".installed-cpu-hub").touch()
    if LIBRARY.exists():
        shutil.copy2(LIBRARY, copy / LIBRARY.relative_to(ROOT))
    (copy / ".venv" / ".native").touch()
    return copy


class Shell:
    """A shell in the clone that keeps its directory and variables, and one server in the background."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.port, self.grpc_port = free_ports(2)
        self._server: subprocess.Popen[bytes] | None = None
        self._log = home / "server.log"
        self._state = home / "state"
        self._state.write_text(f"cd {directory}\n")
        self._environment = {
            "PATH": os.defpath if "/usr/bin" in os.defpath else "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PORT": str(self.port),
            "CONDCONV_PORT": str(self.port),
            "CONDCONV_URL": f"http://127.0.0.1:{self.port}",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def at_its_port(self, text: str) -> str:
        """A page's text with the server's own ports."""
        text = re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{self.port}", text)
        return re.sub(r"\b(127\.0\.0\.1:|localhost:|CONDCONV_GRPC_PORT=)8001\b", rf"\g<1>{self.grpc_port}", text)

    def run(self, command: str, *, may_fail: bool = False) -> str:
        """Run a command; return what it printed. Commands that serve go on in the background."""
        command = self.at_its_port(command)
        # As `curl` in a terminal, but an answer that is an error ends the test.
        quiet = 'curl() { command curl --silent --show-error ${FAIL:---fail-with-body} "$@"; }\n'
        if SERVES.search(command):
            self.stop()
            script = f". {self._state}\nexec 2>&1\n{command.replace('condconv serve', 'exec condconv serve', 1)}"
            with self._log.open("wb") as log:
                self._server = subprocess.Popen(
                    ["bash", "-c", script], env=self._environment, stdout=log, stderr=log, start_new_session=True
                )
            self._wait(re.search(r"CONDCONV_ROOT_PATH=(\S+)", command))
            return ""
        keep = f"set -e\n. {self._state}\nset +e\n{quiet}{command}\nstatus=$?\n"
        keep += f"{{ declare -p PATH; echo \"cd '$PWD'\"; }} > {self._state}\nexit $status"
        environment = {**self._environment, **({"FAIL": "--silent"} if may_fail else {})}
        done = subprocess.run(
            ["bash", "-c", keep], env=environment, capture_output=True, timeout=SECONDS, check=False, text=True
        )
        assert done.returncode == 0, (
            f"{command}\nended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def stop(self) -> None:
        """End the server as Ctrl-C does; it says that all went well."""
        if self._server is None:
            return
        os.killpg(self._server.pid, signal.SIGINT)
        code, self._server = self._server.wait(60), None
        # make says that its recipe was interrupted, whatever that returned.
        assert code in (0, 2, 130, -signal.SIGINT), f"the server ended with {code}: {self._log.read_text()[-3000:]}"

    def _wait(self, prefix: re.Match[str] | None) -> None:
        assert self._server is not None
        address = f"http://127.0.0.1:{self.port}{prefix[1] if prefix else ''}/readyz"
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert self._server.poll() is None, f"the server ended: {self._log.read_text()[-3000:]}"
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        raise AssertionError(f"{address} isn't ready: {self._log.read_text()[-3000:]}")


@pytest.fixture
def shell(clone: Path, tmp_path: Path) -> Iterator[Shell]:
    made = Shell(clone, tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, shell: Shell, clone: Path) -> None:
    blocks, printed = blocks_of(page), ""
    for number, block in enumerate(blocks):
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        if block.language == "sh":
            commands = [command for command in commands_of(block) if why_not_run(command) is None]
            for command in commands:
                printed = shell.run(command, may_fail=command is commands[-1] and fails(after))
        elif block.language == "python" and not lacks_what_it_needs(block.text):
            (clone / "page.py").write_text(shell.at_its_port(block.text))
            printed = shell.run(f"{clone}/.venv/bin/python {clone}/page.py")
        elif is_expected(block):
            compare(block, printed)


# --- what is shown


def compare(block: Block, printed: str) -> None:
    """Compare what a page shows with what came out."""
    if block.language == "json":
        try:
            found = json.loads(printed)
        except ValueError as error:
            raise AssertionError(f"{block} shows JSON, but this came out: {printed[:500]}") from error
        wrong = list(differences(json.loads(block.text), found))
        assert not wrong, f"{block}: " + "; ".join(wrong)
    else:
        missing = lines_missing(block.text, printed)
        assert not missing, f"{block}: not printed: {missing}\nprinted: {printed}"


def differences(shown: Any, found: Any, where: str = "") -> Iterator[str]:
    """How an answer differs from what is shown of it. Times vary; figures may be rounded; `...` stands for more."""
    if "timings_ms" in where or where.endswith("batch_size"):
        return
    if isinstance(shown, dict) and isinstance(found, dict):
        for name, value in shown.items():
            if name == "...":
                continue
            if name in found:
                yield from differences(value, found[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is missing"
        more = found.keys() - shown.keys()
        if more and "..." not in shown and not SHORTENED & {where.rpartition(".")[2]}:
            yield f"{where} has also {', '.join(sorted(more))}"
    elif isinstance(shown, list) and isinstance(found, list):
        if len(shown) != len(found) and where.rpartition(".")[2] not in SHORTENED:
            yield f"{where} has {len(found)} entries, not {len(shown)}"
        for number, (one, other) in enumerate(zip(shown, found, strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
    elif isinstance(shown, float) and isinstance(found, float | int):
        if abs(shown - found) > 0.006 + 0.02 * abs(shown):
            yield f"{where} is {found}, not {shown}"
    elif shown != found:
        yield f"{where} is {found!r}, not {shown!r}"


SHORTENED = {"routing", "blocks", "features"}
"""Of these a page may show some only."""


def lines_missing(shown: str, printed: str) -> list[str]:
    """Lines of a page that weren't printed, in this order; `...` stands for anything, and figures may be near."""
    lines, missing = iter(printed.splitlines()), []
    for wanted in shown.splitlines():
        # A line of its own, `...` stands for any number of lines; those between are skipped anyway.
        if wanted.strip() not in ("", "...") and not any(is_like(wanted, line) for line in lines):
            missing.append(wanted)
            lines = iter(printed.splitlines())
    return missing


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def is_like(shown: str, line: str) -> bool:
    pattern = re.escape(" ".join(NUMBER.sub("0", shown).split())).replace(re.escape("..."), ".*")
    if not re.fullmatch(pattern, " ".join(NUMBER.sub("0", line).split())):
        return False
    if "..." in shown:
        return True
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(line), strict=True)
    return all(
        abs(float(a) - float(b)) <= 0.02 * abs(float(a)) + 1.5 * 10 ** -len(a.partition(".")[2]) for a, b in pairs
    )


@pytest.mark.parametrize(
    ("shown", "found", "wrong"),
    [
        ({"a": 1.0, "...": ""}, {"a": 1.001, "b": 2}, 0),
        ({"a": 1.0}, {"a": 1.1}, 1),
        ({"a": 1}, {"a": 1, "b": 2}, 1),
        ({"a": [1]}, {"a": [1, 2]}, 1),
        ({"routing": {"x": [0.5]}}, {"routing": {"x": [0.5], "y": [0.1]}}, 0),
        ({"label": "cup"}, {"label": "mug"}, 1),
    ],
)
def test_answers_are_compared(shown, found, wrong):
    assert len(list(differences(shown, found))) == wrong


def test_lines_are_compared():
    assert not lines_missing("a 27%\n...\nb 1.5", "x\na   26%\nb 1.51")
    assert lines_missing("a 27%", "a 50%") == ["a 27%"]
    assert lines_missing("a\nb", "b\na") == ["b"]
