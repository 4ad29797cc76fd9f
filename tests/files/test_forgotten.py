"""What one forgets when something is added to the service, each with a sentence that says what to do.

CONTRIBUTING.md has the recipes.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from condconv_serve import fronts
from condconv_serve.domain import Classification
from condconv_serve.errors import InferenceFailed
from condconv_serve.fronts.keys import ApiKey, KeyRing
from condconv_serve.fronts.native.problems import Problem
from condconv_serve.imaging.formats import ACCEPTED_FORMATS, SUFFIXES, FormatName, recognise
from condconv_serve.settings import Settings
from condconv_serve.telemetry.metrics import Metrics
from tests import pictures
from tests.contract.fronts import FRONTS
from tests.unit.fronts.native.application import application
from tests.unit.fronts.native.test_security import OPEN
from tests.unit.fronts.test_error_tables import TABLES

pytestmark = pytest.mark.files

ROOT = Path(__file__).parents[2]


def complain(sentences: Iterable[str]) -> None:
    """Fail with these sentences, if there are any."""
    if found := "\n".join(sentences):
        pytest.fail(found, pytrace=False)


def test_settings_without_a_description() -> None:
    complain(
        f'CONDCONV_{name.upper()} has no description: add description="..." to its Field in settings.py, '
        "a sentence that begins with a capital and ends with a full stop."
        for name, field in Settings.model_fields.items()
        if not (field.description or "").endswith(".") or not (field.description or "a")[0].isupper()
    )


def test_metrics_without_a_question() -> None:
    complain(
        f"{name} doesn't say which question it answers: write its help text in telemetry/metrics.py as "
        f'"What it counts. Which question does it answer?", not {documentation!r}.'
        for name, _, _, documentation in Metrics(CollectorRegistry()).describe()
        if not documentation.rpartition(". ")[0] or not documentation.endswith("?")
    )


def test_metrics_without_their_unit() -> None:
    complain(
        f"{name} is a {kind}: names begin with condconv_, and exactly those of counters end in _total."
        for name, kind, _, _ in Metrics(CollectorRegistry()).describe()
        if not name.startswith("condconv_") or (kind == "counter") != name.endswith("_total")
    )


def test_routes_without_a_guard() -> None:
    async def answer() -> Classification:
        raise InferenceFailed("Nobody asks.")

    app, _ = application(answer, keys=KeyRing([ApiKey(name="a", scopes=("predict",), sha256="0" * 64)]))
    complain(
        f"{method.upper()} {path} is open to everybody: give its router dependencies=[guard] in create_app, "
        "fronts/native/app.py. If that is what you want, add it to OPEN in tests/unit/fronts/native/test_security.py."
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        if "security" not in operation and path not in OPEN
    )


def test_fronts_without_a_table_of_errors() -> None:
    complain(
        f"The front {name!r} has no table of errors: give it one with every slug, and add it to TABLES in "
        "tests/unit/fronts/test_error_tables.py, which checks that none is missing."
        for name in _fronts() - TABLES.keys()
    )


def test_fronts_without_contract_tests() -> None:
    complain(
        f"The front {name!r} isn't tested for keys, rates, deadlines and the like: add it to FRONTS in "
        "tests/contract/fronts.py, with a function that makes it and one that asks it."
        for name in _fronts() - FRONTS.keys()
    )


def _fronts() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(fronts.__path__) if module.ispkg}


def test_image_formats_that_are_half_added() -> None:
    sample = pictures.photo("cat", (48, 36))
    accepted = {recognise(data) for data in pictures.accepted(sample).values()}
    large = {recognise(data) for data in pictures.too_large().values()}
    complain(
        f"The image format {name} is half added: {what}."
        for name in sorted({*get_args(FormatName), *ACCEPTED_FORMATS, *SUFFIXES})
        for missing, what in (
            (name not in get_args(FormatName), "add it to FormatName in imaging/formats.py"),
            (name not in ACCEPTED_FORMATS, "add it to ACCEPTED_FORMATS in imaging/formats.py"),
            (name not in SUFFIXES, "add its file names to SUFFIXES in imaging/formats.py"),
            (
                name not in accepted,
                "add files of it to accepted() in tests/pictures.py, and its signature to recognise()",
            ),
            (
                name not in large,
                "add a file whose header announces too many pixels to too_large() in tests/pictures.py",
            ),
            (name not in _example(), "name it in the example of Problem in fronts/native/problems.py"),
            (name not in (ROOT / "docs/api.md").read_text(encoding="utf-8"), "name it in docs/api.md, at Images"),
        )
        if missing
    )


def _example() -> str:
    return str(Problem.model_config["json_schema_extra"])
