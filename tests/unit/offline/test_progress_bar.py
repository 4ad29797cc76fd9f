"""The progress bar of calls with many images: where it appears, and what it says."""

import contextlib
import io
import sys
from types import ModuleType

import pytest
from rich.console import Console

from condconv_serve.offline.progress import ProgressBar


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def shown(console, *, wanted=None, images=12, total=12):
    with ProgressBar("fake/1", wanted=wanted, console=console) as bar:
        for done in range(1, images + 1):
            bar.update(done, total)
    return console.file.getvalue()


def test_on_a_terminal():
    said = shown(console(terminal=True))
    assert "fake/1" in said
    assert "12/12" in said


@pytest.mark.parametrize(
    ("terminal", "options"),
    [(False, {}), (True, {"wanted": False}), (True, {"images": 7, "total": 7}), (True, {"images": 7, "total": None})],
    ids=["no terminal", "not wanted", "few", "few so far"],
)
def test_nowhere(terminal, options):
    assert shown(console(terminal=terminal), **options) == ""


def test_where_it_is_wanted():
    assert "3/3" in shown(console(terminal=False), wanted=True, images=3, total=3)


def test_nobody_knows_how_many():
    said = shown(console(terminal=True), images=9, total=None)
    assert "9/9" in said


def test_in_a_notebook(monkeypatch):
    """IPython's display, which a notebook has, and neither text on stderr nor widgets."""
    displayed, updated = [], []

    class Handle:
        def update(self, value):
            updated.append(value)

    def display(value, *, display_id):
        displayed.append((value, display_id))
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    notebook = console(terminal=False)
    monkeypatch.setattr(notebook, "is_jupyter", True)
    assert shown(notebook) == ""
    assert [display_id for _, display_id in displayed] == [True]
    assert repr(updated[-1]) == "fake/1 12 of 12"
    assert updated[-1]._repr_html_() == "<progress value='12' max='12'></progress> fake/1 12 of 12"
    shown(notebook, images=9, total=None)
    assert updated[-1]._repr_html_() == "<progress value='9' max='9'></progress> fake/1 9 of 9"
    with contextlib.suppress(KeyboardInterrupt), ProgressBar("fake/1", wanted=True, console=notebook) as bar:
        bar.update(5, None)
        raise KeyboardInterrupt
    assert updated[-1]._repr_html_() == "<progress></progress> fake/1 5"
    assert shown(notebook, images=7, total=7) == ""
    assert len(displayed) == 3
