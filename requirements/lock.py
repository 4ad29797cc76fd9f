"""Writes the lock files beside it with uv; `--check` only says whether pyproject.toml has changed since.

One resolution over everything decides the versions, for all Pythons and platforms at once. Each file then holds what
its own part of pyproject.toml needs. Any of them fit together: `pip install --require-hashes -r base.txt -r cpu.txt`.
Only the files in `APART` are resolved on their own.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent / "pyproject.toml"

EXTRAS = ("cpu", "gpu", "heif", "hub", "openvino", "parquet", "ray", "telemetry")
"""Extras with a file of their own. PyTorch has none: its builds without CUDA are not on PyPI."""
GROUPS = {
    "build": ("build",),
    "compiler": ("compiler",),
    "test": ("test", "check"),
    "browser": ("browser",),
    "clients": ("clients",),
    "clock": ("clock",),
    "examples": ("examples",),
    "load": ("load",),
    "sbom": ("sbom",),
}
"""Files of dependency groups: those that each holds."""
ALONE = ("build", "compiler", "load", "sbom")
"""Files that are also installed without `base.txt`; all others leave out what is in it."""
APART = {"clients": ("tensorflow",), "load": ()}
"""Files that may need other versions than the server has, so they are resolved without it, and it without them. Each
leaves out these packages, which come with the server under another name."""


def parts() -> dict[str, tuple[str, ...]]:
    """What uv is asked for, by name of the file."""
    project = ("pyproject.toml",)
    return {
        "base": project,
        **{extra: (*project, "--extra", extra) for extra in EXTRAS},
        **{name: tuple(word for group in groups for word in ("--group", group)) for name, groups in GROUPS.items()},
    }


def digest(project: dict[str, Any], name: str) -> str:
    """A number that changes with everything in pyproject.toml that a lock is made of."""
    groups = project["dependency-groups"]
    others = {"bench", *APART} - {name}
    made_of = {
        "python": project["project"]["requires-python"],
        "base": project["project"]["dependencies"],
        "extras": {extra: project["project"]["optional-dependencies"][extra] for extra in EXTRAS},
        "groups": {name: group for name, group in groups.items() if name not in others},
        "build": project["build-system"]["requires"],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def outdated(project: dict[str, Any], folder: Path = FOLDER) -> list[str]:
    """Names of the lock files that are missing, or were made of other dependencies than `project`'s."""
    return [
        f"{name}.txt"
        for name in parts()
        if not (file := folder / f"{name}.txt").exists() or not file.read_text().startswith(_heading(project, name))
    ]


def write(project: dict[str, Any], folder: Path = FOLDER) -> None:
    """Resolve everything anew and write all lock files."""
    with tempfile.TemporaryDirectory() as directory:
        everything, left_out = Path(directory) / "everything.txt", Path(directory) / "left_out.txt"
        asked = dict.fromkeys(word for name, part in parts().items() if name not in APART for word in _pairs(part))
        everything.write_text(_resolve(word for pair in asked for word in pair))
        base: set[str] = set()
        for name, part in parts().items():
            left_out.write_text("".join(f"{package}; sys_platform == 'never'\n" for package in APART.get(name, ())))
            narrowed = ("--override", str(left_out)) if name in APART else ("--constraint", str(everything))
            pins = [pin for pin in _pins(_resolve((*part, *narrowed))) if "sys_platform == 'never'" not in pin]
            own = [pin for pin in pins if name in ALONE or pin not in base]
            if name == "base":
                base = set(pins)
            (folder / f"{name}.txt").write_text(f"{_heading(project, name)}\n{''.join(own)}")
            print(f"{name}.txt: {len(own)} packages")


def _heading(project: dict[str, Any], name: str) -> str:
    state = digest(project, name)
    return f"# Written by `make lock`; don't edit. Made of pyproject.toml's dependencies, state {state}.\n"


def _pairs(part: Sequence[str]) -> list[tuple[str, ...]]:
    """`("a.toml", "--extra", "b")` as `[("a.toml",), ("--extra", "b")]`."""
    words = iter(part)
    return [(word, next(words)) if word.startswith("--") else (word,) for word in words]


def _resolve(asked: Any) -> str:
    command = [
        sys.executable,
        "-m",
        "uv",
        "--no-config",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
    ]
    command += ["--no-python-downloads", "--generate-hashes", "--no-header", "--no-annotate", *asked]
    return subprocess.run(command, cwd=PROJECT.parent, check=True, stdout=subprocess.PIPE, text=True).stdout


def _pins(text: str) -> list[str]:
    """The packages of a lock: each its line and those of its hashes."""
    return re.findall(r"^\S.*\n(?:[ ]+.*\n)*", text, re.MULTILINE)


def main() -> int:
    """Write the lock files, or with `--check` name those that are out of date."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    if "--check" not in sys.argv:
        write(project)
    elif names := outdated(project):
        print(
            f"requirements/ was made of other dependencies than pyproject.toml has now ({', '.join(names)}). "
            "Run: make lock",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
