"""Notebooks are committed as they are before they run: outputs would grow old, and hide what a change is about."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.files

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def test_there_are_some() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_no_outputs(file: Path) -> None:
    notebook = json.loads(file.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    ran = [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert not ran, f"{file.name}: clear all outputs before you commit it; these cells have some: {', '.join(ran)}."
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}, "an editor's own notes"
