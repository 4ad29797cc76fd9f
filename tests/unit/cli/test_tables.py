"""Tables of long names: a line per row for programs, paragraphs where a terminal is too narrow."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from condconv_serve.cli import detection_output, output, routing_output, routing_table, tables
from condconv_serve.cli.detection_output import print_objects
from condconv_serve.cli.routing_output import print_routing
from condconv_serve.cli.tables import print_listing
from condconv_serve.domain import (
    Box,
    ClassScore,
    DetectedObject,
    Detection,
    Prediction,
    RoutingLayout,
    RoutingTrace,
    Timings,
)

COLUMNS = ("model", "architecture", "top-1", "from")
ROWS = [
    ("first", "a" * 30, "77.8%", f"https://example.org/{'b' * 90}"),
    ("\x1b[2Jsecond", "c" * 30, ("78.3%", "red"), "https://example.org/d"),
    ("third", ("the manifest is damaged", "red")),
]


@pytest.fixture
def shown(monkeypatch):
    """What a terminal of so many columns shows."""

    def run(width):
        file = StringIO()
        console = Console(file=file, width=width, force_terminal=True, color_system=None, emoji=False)
        for module in (output, tables):
            monkeypatch.setattr(module, "on_terminal", lambda: True)
            monkeypatch.setattr(module, "out", console)
        monkeypatch.setattr(tables, "say", lambda *parts: output.say(*parts, console=console))
        print_listing(COLUMNS, ROWS)
        return file.getvalue().splitlines()

    return run


def test_a_narrow_terminal(shown):
    assert shown(80) == [
        "first",
        f"  architecture {'a' * 30}, top-1 77.8%",
        f"  from https://example.org/{'b' * 90}",
        "\\x1b[2Jsecond",
        f"  architecture {'c' * 30}, top-1 78.3%",
        "  from https://example.org/d",
        "third",
        "  the manifest is damaged",
    ]
    assert shown(120)[3:5] == [
        "\\x1b[2Jsecond",
        f"  architecture {'c' * 30}, top-1 78.3%, from https://example.org/d",
    ]


def test_a_wide_terminal(shown):
    header, *rows = shown(200)
    assert header.split() == list(COLUMNS)
    assert [row.split()[0] for row in rows] == ["first", "\\x1b[2Jsecond", "third"]


def test_what_a_program_reads(capsys):
    print_listing(COLUMNS, ROWS)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == list(COLUMNS)
    assert rows[0].split() == [str(cell) for cell in ROWS[0]]
    assert len(rows) == 3


@pytest.mark.parametrize(("experts", "width", "boxed"), [(4, 80, True), (8, 80, False), (8, 120, True)])
def test_weights_are_never_cut(experts, width, boxed, monkeypatch):
    weights = np.linspace(0, 1, 2 * experts, dtype=np.float32).reshape(2, experts)
    prediction = Prediction(
        best=ClassScore(0, "tench", None, 0.5),
        classes=(),
        routing=RoutingTrace(RoutingLayout(("block_8", "block_15"), (experts, experts)), weights),
        timings=Timings(decode=0, queue=0, inference=0, total=0),
        batch_size=1,
    )
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None, emoji=False)
    for module in (output, tables):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
        monkeypatch.setattr(module, "out", console)
    for module in (routing_output, routing_table):
        monkeypatch.setattr(module, "say", lambda *parts: output.say(*parts, console=console))
    print_routing("a.jpg", prediction)
    text = file.getvalue()
    assert all(f"{weight:.3f}" in text for weight in weights.flat)
    assert ("│" in text) == boxed
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(("width", "table"), [(80, True), (40, False)])
def test_boxes_are_never_cut(width, table, monkeypatch):
    label, box = "a label of some length", Box(1200.5, 30.0, 5999.9, 3999.1)
    found = DetectedObject(index=0, label=label, synset=None, score=0.5, box=box, box_normalized=box)
    nothing = RoutingTrace(RoutingLayout(), np.zeros((0, 0), np.float32))
    timings = Timings(decode=0, queue=0, inference=0, total=0)
    detection = Detection(
        objects=(found,), width=6000, height=4000, routing=nothing, timings=timings, batch_size=1, best=None
    )
    console = Console(file=(file := StringIO()), width=width, force_terminal=True, color_system=None, emoji=False)
    for module in (output, tables):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
        monkeypatch.setattr(module, "out", console)
    monkeypatch.setattr(detection_output, "say", lambda *parts: output.say(*parts, console=console))
    print_objects("a.jpg", detection, routing=False)
    first, *lines = file.getvalue().splitlines()
    assert first == "a.jpg  6000 x 4000 pixels, 1 object"
    assert lines[-1].split()[-6:] == (
        ["length", "50.0%", "1200.5", "30.0", "5999.9", "3999.1"]
        if table
        else ["50.0%", "1200.5,", "30.0", "to", "5999.9,", "3999.1"]
    )
