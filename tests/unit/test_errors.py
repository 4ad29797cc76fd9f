import re

import pytest

from condconv_serve import errors
from condconv_serve.errors import CapacityError, QueueFull, ServiceError
from condconv_serve.fronts.native.problems import STATUS, Problem

LINE = re.compile(r"^(?P<branches>[│├└─ ]*)(?P<name>\w+)(?: +(?P<slug>\w+) +(?P<text>\S.*))?$")


def descendants(error):
    for child in error.__subclasses__():
        yield child
        yield from descendants(child)


ERRORS = [error for error in descendants(ServiceError) if error.__module__.startswith(errors.__name__)]
ABSTRACT = [error for error in ERRORS if any(child in ERRORS for child in error.__subclasses__())]
CONCRETE = [error for error in ERRORS if error not in ABSTRACT]


def drawn():
    """The tree of the module's docstring: name -> (parent's name, slug)."""
    _, _, tree = errors.__doc__.partition("\n\n")
    path, found = [], {}
    for line in tree.strip().splitlines():
        match = LINE.match(line)
        depth = len(match["branches"]) // 4
        path[depth:] = [match["name"]]
        found[match["name"]] = (path[depth - 1] if depth else None, match["slug"])
    return found


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    expected = {error.__name__: (error.__base__.__name__, vars(error).get("slug")) for error in ERRORS}
    assert drawn() == {"ServiceError": (None, None), **expected}, (
        "draw the tree in the docstring of errors/__init__.py as it is now"
    )


def test_each_error_has_a_slug_and_a_title_of_its_own():
    assert len({error.slug for error in CONCRETE}) == len(CONCRETE)
    assert len({error.title for error in CONCRETE}) == len(CONCRETE)
    for error in CONCRETE:
        assert {"slug", "title"} <= vars(error).keys(), error
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.slug)
        assert error.__doc__.strip().endswith((".", "known."))


def test_errors_between_the_root_and_the_leaves_are_internal_ones():
    assert {error.slug for error in ABSTRACT} == {ServiceError.slug}


@pytest.mark.parametrize("error", [*CONCRETE, ServiceError])
def test_every_error_becomes_a_problem(error):
    problem = Problem.of(error("what was wrong"))
    assert (problem.slug, problem.title, problem.detail) == (error.slug, error.title, "what was wrong")
    assert problem.status == STATUS[error.slug]
    assert problem.retry_after is None


def test_capacity_comes_back():
    assert QueueFull("full", retry_after=2.5).retry_after == 2.5
    assert Problem.of(QueueFull("full", retry_after=2.5)).retry_after == 2.5
    assert {STATUS[error.slug] for error in CONCRETE if issubclass(error, CapacityError)} <= {429, 503, 504}
