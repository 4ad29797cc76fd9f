"""Every front has a table of errors of its own, and none of them misses an error."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

import pytest

from condconv_serve import errors, fronts
from condconv_serve.errors import ServiceError
from condconv_serve.fronts.native import problems

TABLES = {"native": problems.STATUS}
"""By the name of the front's package."""


def slugs(root: type[ServiceError] = ServiceError) -> Iterator[str]:
    yield root.slug
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from slugs(child)


def test_every_front_is_looked_at() -> None:
    packages = {module.name for module in pkgutil.iter_modules(fronts.__path__) if module.ispkg}
    assert packages == set(TABLES), "add the table of each front to TABLES"


@pytest.mark.parametrize("front", TABLES)
def test_a_front_knows_every_error_and_no_other(front: str) -> None:
    missing, unknown = set(slugs()) - TABLES[front].keys(), TABLES[front].keys() - set(slugs())
    assert not missing, f"give {', '.join(sorted(missing))} a status in the table of the front {front}"
    assert not unknown, f"no error has the slug {', '.join(sorted(unknown))}"


def test_statuses_are_those_of_errors() -> None:
    assert all(400 <= status <= 599 for status in problems.STATUS.values())
