"""Files of tests that take long are begun first."""

from pathlib import Path

import pytest

from tests.slow_first import SLOW, in_order

pytestmark = pytest.mark.files

ROOT = Path(__file__).parents[2]


def test_slow_files_are_there() -> None:
    missing = [file for file in SLOW if not (ROOT / file).exists()]
    assert not missing, f"{', '.join(missing)}: take these from SLOW in tests/slow_first.py, or rename them there."


def test_the_order() -> None:
    files = ["a", "b", "b", SLOW[1], "c", "c", SLOW[0], "c", SLOW[0]]
    assert [files[place] for place in in_order(files)] == [SLOW[0], SLOW[0], SLOW[1], "c", "c", "c", "b", "b", "a"]
    assert in_order(["c", "c", "b", "b"]) == [0, 1, 2, 3]
