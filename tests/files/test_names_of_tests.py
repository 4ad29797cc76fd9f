"""No two files of tests have the same name: pytest can't collect them together, since they lie in no packages."""

from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.files

TESTS = Path(__file__).parents[1]


def test_files_of_tests_have_names_of_their_own() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        places[file.name].append(file.relative_to(TESTS).as_posix())
    assert len(places) > 50, "there are tests"
    twice = [f"{' and '.join(files)} have one name: rename one." for files in places.values() if len(files) > 1]
    assert not twice, "\n".join(twice)
