"""The lock files: in step with pyproject.toml, with hashes, and for every Python and platform that is supported."""

from __future__ import annotations

import copy
import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.files

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _load() -> Any:
    spec = spec_from_file_location("lock", FOLDER / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock = _load()


def _pins(name: str) -> list[Requirement]:
    lines = re.findall(r"^[^#\s].*", (FOLDER / f"{name}.txt").read_text(), re.MULTILINE)
    return [Requirement(line.rstrip("\\ ")) for line in lines]


def test_they_are_in_step():
    assert lock.outdated(PROJECT) == [], "run: make lock"


def _add_dependency(project: Any) -> None:
    project["project"]["dependencies"].append("left-pad")


def _change_an_extra(project: Any) -> None:
    project["project"]["optional-dependencies"]["hub"] = []


def _change_a_group(project: Any) -> None:
    project["dependency-groups"]["quick"].pop()


def _change_the_python(project: Any) -> None:
    project["project"]["requires-python"] = ">=3.12"


@pytest.mark.parametrize("change", [_add_dependency, _change_an_extra, _change_a_group, _change_the_python])
def test_a_change_is_noticed(change):
    changed = copy.deepcopy(PROJECT)
    change(changed)
    assert lock.outdated(changed) == [f"{name}.txt" for name in lock.parts()]


def test_a_missing_file_is_noticed(tmp_path):
    for name in lock.parts():
        if name != "hub":
            (tmp_path / f"{name}.txt").write_bytes((FOLDER / f"{name}.txt").read_bytes())
    assert lock.outdated(PROJECT, tmp_path) == ["hub.txt"]


@pytest.mark.parametrize("name", lock.parts())
def test_every_pin_has_hashes_and_no_address(name):
    text = (FOLDER / f"{name}.txt").read_text()
    pins = re.findall(r"^[^#\s].*\n(?: .*\n)*", text, re.MULTILINE)
    assert pins
    for pin in pins:
        first, *hashes = pin.replace("\\\n", "\n").split("\n")
        assert re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; .+)?", first.strip()), first
        assert [line for line in hashes if line.strip()], first
        for line in hashes:
            assert re.fullmatch(r"(\s*--hash=sha256:[0-9a-f]{64}\s*)?", line), line
    assert "://" not in text


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_what_is_asked_for_is_pinned_everywhere(python, system, machine):
    platform = {"python_version": python, "python_full_version": f"{python}.5", "platform_machine": machine}
    environment = {**platform, "sys_platform": system, "platform_python_implementation": "CPython"}

    def active(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(environment)

    for extra in ("base", *lock.EXTRAS):
        asked = [*PROJECT["project"]["dependencies"]]
        if extra != "base":
            asked += PROJECT["project"]["optional-dependencies"][extra]
        pinned: dict[str, set[str]] = {}
        for pin in [*_pins("base"), *(_pins(extra) if extra != "base" else [])]:
            if active(pin):
                pinned.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier).removeprefix("=="))
        assert {name: found for name, found in pinned.items() if len(found) > 1} == {}
        for requirement in filter(active, map(Requirement, asked)):
            (version,) = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement
