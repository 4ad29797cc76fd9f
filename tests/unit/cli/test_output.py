import json
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from condconv_serve.cli import output
from condconv_serve.cli.output import add_row, print_json, print_markdown, print_table, printable, say, to_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ümläut 猫 \U0001f408 a\u200cb", "Ümläut 猫 \U0001f408 a\u200cb"),
        (r"\[bold]x[/] :cat:", r"\[bold]x[/] :cat:"),
        ("\x1b]0;title\x07\x9b2J\x7f", r"\x1b]0;title\x07\x9b2J\x7f"),
        ("two\nlines\tand \u2028 more", r"two\nlines\tand \u2028 more"),
        ("caf\udce9.jpg \ud800", r"caf\xe9.jpg \ud800"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
    ],
)
def test_what_would_steer_the_terminal_is_spelled_out(text, shown):
    assert printable(text) == shown
    file = StringIO()
    say((text, "bold"), "|", text, console=Console(file=file, width=5, emoji=False))
    assert file.getvalue() == f"{shown}|{shown}\n"
    table = Table(box=None, show_header=False)
    add_row(table, (text, "red"), 1)
    file = StringIO()
    Console(file=file, width=200, emoji=False).print(table)
    assert file.getvalue().rstrip() == f" {shown}  1"


def test_styles_are_seen_on_a_terminal_only():
    file = StringIO()
    say(("bold", "bold"), " plain", console=Console(file=file, force_terminal=True, color_system="standard"))
    assert file.getvalue() == "\x1b[1mbold\x1b[0m plain\n"


def test_json_means_the_same_and_can_be_written_anywhere():
    document = {"Ü猫": ["\x1b[2J", "\x9b2J\x7f\u2028", "caf\udce9.jpg", "\\x9b", 1.5, None]}
    text = to_json(document)
    assert json.loads(text) == document
    assert "Ü猫" in text
    assert text.encode("utf-8").decode("utf-8").replace("\n", "").isprintable()


CARD = "# Card\n\n<http://a.b/%1b%5b31mRED%1b]0;x%07> [text](http://hidden)\n\n- one\x1b[2J\n"


def test_a_card_on_a_terminal(monkeypatch):
    file = StringIO()
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setattr(output, "out", Console(file=file, width=200, force_terminal=True, color_system=None))
    print_markdown(CARD)
    shown = file.getvalue()
    assert "\x1b" not in shown
    assert r"\x1b[31mRED\x1b]0;x" in shown
    assert "text (http://hidden)" in shown
    assert r"one\x1b[2J" in shown


def test_what_a_program_reads_is_neither_coloured_nor_folded(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_json({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    print_markdown(CARD)
    assert capsys.readouterr().out == CARD.replace("\x1b", r"\x1b")
    table = Table(box=None, show_header=False)
    add_row(table, "x" * 20_000)
    print_table(table)
    assert len(capsys.readouterr().out.splitlines()) == 1
