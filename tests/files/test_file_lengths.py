"""No file of the package is longer than 400 lines: what does two jobs becomes two modules."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.files

PACKAGE = Path(__file__).parents[2] / "service" / "condconv_serve"
MOST = 400
SOURCES = {".py", ".c", ".h", ".js", ".css", ".html"}


def test_no_file_is_too_long() -> None:
    files = [file for file in sorted(PACKAGE.rglob("*")) if file.suffix in SOURCES]
    assert {file.suffix for file in files} == SOURCES
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert not [
        f"{file.relative_to(PACKAGE).as_posix()} has {lines} lines, more than {MOST}: split it by what its parts do."
        for file, lines in lengths.items()
        if lines > MOST
    ]
