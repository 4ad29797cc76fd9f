"""What is easily forgotten when something is added. Each failure says what to do; CONTRIBUTING.md has the recipes.

What is generated (`make docs`) is compared by `docs/generate.py --check`.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import condconv_serve
from condconv_serve import errors, fronts
from condconv_serve.domain import Classification
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.grpc import status
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native import problems
from condconv_serve.fronts.oip import errors as oip_errors
from condconv_serve.fronts.tfserving import errors as tfserving_errors
from condconv_serve.imaging.formats import ACCEPTED_FORMATS, IMAGE_SUFFIXES, SUFFIXES, FormatName, recognise
from condconv_serve.settings import Settings
from condconv_serve.telemetry.metrics import Metrics
from tests import pictures
from tests.contract.fronts import FRONTS
from tests.unit.fronts.native.application import application, connect

pytestmark = pytest.mark.files

DOCS = Path(__file__).parents[2] / "docs"


# --- a metric


def test_every_metric_says_what_it_counts_and_which_question_it_answers() -> None:
    forgotten = []
    for name, _, _, documentation in Metrics(CollectorRegistry()).describe():
        what, _, question = documentation.rpartition(". ")
        if not what or not question.endswith("?"):
            forgotten.append(
                f"{name} has no question: in telemetry/metrics.py its help text must say what it counts, then end with "
                f"the question that it answers, as in 'Rows waiting now. Is the server falling behind?'. It is: "
                f"{documentation!r}"
            )
    assert not forgotten, "\n".join(forgotten)


def test_metrics_are_called_as_prometheus_wants_it() -> None:
    forgotten = [
        f"{name} is a {kind}: metrics start with condconv_, and exactly the counters end with _total. Rename it."
        for name, kind, _, _ in Metrics(CollectorRegistry()).describe()
        if not name.startswith("condconv_") or name.endswith("_total") != (kind == "counter")
    ]
    assert not forgotten, "\n".join(forgotten)


# --- a setting


def test_every_setting_is_described() -> None:
    forgotten = [
        f'CONDCONV_{name.upper()} has no description: add description="..." to its Field in settings.py, a sentence '
        "that begins with a capital and ends with a full stop. Then run make docs."
        for name, field in Settings.model_fields.items()
        if not (field.description or "").endswith(".") or not (field.description or "a")[0].isupper()
    ]
    assert not forgotten, "\n".join(forgotten)


def test_every_setting_is_in_the_documentation() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    forgotten = [
        f"docs/operations.md doesn't list CONDCONV_{name.upper()}. Run: make docs"
        for name in Settings.model_fields
        if f"`CONDCONV_{name.upper()}`" not in page
    ]
    assert not forgotten, "\n".join(forgotten)


# --- a module or package at the top


def test_the_map_names_every_room() -> None:
    page = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"`([\w/]+?)(?:/|\.py)`", page.partition("| where | what |")[2].partition("\n\n")[0])
    found = {module.name for module in pkgutil.iter_modules(condconv_serve.__path__)} - {"__main__"}
    assert found <= {room.partition("/")[0] for room in rooms}, (
        f"{', '.join(sorted(found - set(rooms)))}: add it to the map in CONTRIBUTING.md, where its imports allow it."
    )


# --- an error, a front

TABLES: dict[str, Mapping[str, Any]] = {
    "native": problems.STATUS,
    "grpc": status.STATUS,
    "oip": oip_errors.STATUS,
    "tfserving": tfserving_errors.STATUS,
}
"""The fronts' tables of errors, by the name of the front's package."""


def slugs(root: type[ServiceError] = ServiceError) -> Iterator[str]:
    yield root.slug
    for child in root.__subclasses__():
        if child.__module__.startswith(errors.__name__):
            yield from slugs(child)


def test_every_front_is_looked_at() -> None:
    packages = {module.name for module in pkgutil.iter_modules(fronts.__path__) if module.ispkg}
    assert packages == set(TABLES), (
        f"{', '.join(sorted(packages ^ set(TABLES)))}: each package of fronts/ has a table of errors of its own, and "
        "TABLES in this file names them all."
    )


@pytest.mark.parametrize("front", TABLES)
def test_every_front_knows_every_error_and_no_other(front: str) -> None:
    missing = [f"{slug} is missing: add it to the error table of fronts/{front}." for slug in set(slugs())]
    missing = [sentence for sentence in missing if sentence.partition(" ")[0] not in TABLES[front]]
    missing += [
        f"{slug} is no error of errors/: remove it from the error table of fronts/{front}."
        for slug in TABLES[front].keys() - set(slugs())
    ]
    assert not missing, "\n".join(missing)


def test_every_front_passes_the_contract_tests() -> None:
    packages = {module.name for module in pkgutil.iter_modules(fronts.__path__) if module.ispkg}
    forgotten = [
        f"The front {name!r} isn't tested for keys, rates, deadlines and the like: add it to FRONTS in "
        "tests/contract/fronts.py, with a function that makes it and one that asks it."
        for name in packages - FRONTS.keys()
    ]
    assert not forgotten, "\n".join(forgotten)


# --- a route

OPEN = {"/livez", "/readyz", "/healthz", "/metrics"}
"""Documented routes that are for everybody, with a key or without."""


async def _nobody() -> Classification:
    raise AssertionError("A request without a key got through.")


def guarded() -> FastAPI:
    keys = KeyRing([ApiKey(name="user", scopes=("predict",), sha256=sha256(b"secret").hexdigest())])
    return application(_nobody, keys=keys)[0]


def routes(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of everything that is documented."""
    paths = app.openapi()["paths"]
    return [
        (path, method.upper(), operation) for path, methods in paths.items() for method, operation in methods.items()
    ]


async def test_every_route_is_guarded_or_meant_to_be_open() -> None:
    app = guarded()
    forgotten = []
    async with connect(app) as client:
        for path, method, operation in routes(app):
            answered = await client.request(method, re.sub(r"\{\w+\}", "x", path))
            if path in OPEN:
                if answered.status_code == 401 or "security" in operation:
                    forgotten.append(f"{method} {path} asks for a key: remove it from OPEN in this file.")
            elif answered.status_code != 401 or "security" not in operation:
                forgotten.append(
                    f"{method} {path} answers {answered.status_code} without a key: include its router with the guard "
                    "in fronts/native/app.py, as those beside it, or add its path to OPEN in this file if it is for "
                    "everybody."
                )
    assert not forgotten, "\n".join(forgotten)


def test_every_route_has_a_summary() -> None:
    forgotten = [
        f"{method} {path} has no summary: give its function a docstring; its first line goes into docs/api.md."
        for path, method, operation in routes(guarded())
        if not operation.get("summary")
    ]
    assert not forgotten, "\n".join(forgotten)


# --- an image format


def test_every_image_format_has_suffixes_and_pictures_to_test() -> None:
    known = {recognise(data) for data in pictures.accepted(pictures.photo("coffee", (12, 9))).values()}
    large = {recognise(data) for data in pictures.too_large().values()}
    example = str(problems.Problem.model_config["json_schema_extra"])
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    forgotten = []
    for name in {*ACCEPTED_FORMATS, *get_args(FormatName), *SUFFIXES}:
        if name not in ACCEPTED_FORMATS or name not in get_args(FormatName):
            forgotten.append(f"{name}: add it to FormatName and to ACCEPTED_FORMATS in imaging/formats.py.")
        if not SUFFIXES.get(name):
            forgotten.append(f"{name} has no suffixes: add them to SUFFIXES in imaging/formats.py.")
        if name not in known:
            forgotten.append(
                f"{name} is not tested, or not recognised: add pictures of it to accepted() in tests/pictures.py, and "
                "its signature to recognise() in imaging/formats.py."
            )
        if name not in large:
            forgotten.append(f"{name}: add a file that announces too many pixels to too_large() in tests/pictures.py.")
        if name not in example:
            forgotten.append(f"{name}: name it in the example of Problem in fronts/native/problems.py.")
        if name not in page:
            forgotten.append(f"{name}: name it in docs/api.md, at Images.")
    assert not forgotten, "\n".join(forgotten)


def test_no_suffix_is_of_two_formats() -> None:
    odd = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes if not re.fullmatch(r"\.[a-z]+", suffix)]
    assert not odd, f"Suffixes are a dot and small letters, not {', '.join(odd)}."
    assert len(IMAGE_SUFFIXES) == sum(map(len, SUFFIXES.values())), "A suffix in imaging/formats.py is of two formats."
