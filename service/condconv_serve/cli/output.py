"""How commands print: lines, failures, JSON and tables. Text from outside can't steer the terminal.

What is printed is flushed at once. If its reader has gone, as with `| head`, the command ends without a word.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from typing import Any, NoReturn

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markdown import Markdown
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

BROKEN_PIPE = 141
"""Exit code of a command that is ended by SIGPIPE, as the shell shows it."""


class PipeConsole(Console):
    """A console whose reader may go away."""

    def on_broken_pipe(self) -> NoReturn:
        """End as other commands do."""
        _end_for_lack_of_readers()


class SilentProgress(Progress):
    """A progress bar that prints nothing where it is disabled. Some versions of rich end it with an empty line."""

    def stop(self) -> None:
        """Stop the bar, if there is one."""
        if not self.disable:
            super().stop()


out, err = PipeConsole(emoji=False), PipeConsole(stderr=True, emoji=False)
# Characters that change the direction of text can make a name look like another one.
_CONTROLS = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNPRINTABLE, _RAW_IN_JSON = re.compile(rf"[\x00-\x1f{_CONTROLS}]"), re.compile(f"[{_CONTROLS}]")


def printable(text: object) -> str:
    r"""Text on one line in which what would steer a terminal, or is no UTF-8, is spelled out as in `\x1b`.

    Labels, licences and names of files may be anybody's.
    """
    return _UNPRINTABLE.sub(_spell_out, str(text))


def _spell_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    # Python keeps bytes of names that aren't UTF-8 as U+DC80 to U+DCFF.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()


def say(*parts: object | tuple[object, str], console: Console = out) -> None:
    """Print a line as it is, however long.

    Args:
        parts: text, or pairs of text and style.
        console: `out` or `err`.
    """
    pairs = (part if isinstance(part, tuple) else (part, "") for part in parts)
    console.print(Text.assemble(*((printable(text), style) for text, style in pairs)), highlight=False, soft_wrap=True)


def print_failure(what: object, why: object) -> None:
    """Print one failure on stderr."""
    say((f"{what}:", "bold red"), " ", why, console=err)


def note(text: object) -> None:
    """Print a remark on stderr."""
    say(text, console=err)


def to_json(document: Any, *, indent: int | None = 2) -> str:
    """JSON for people and programs: readable, and escaped where a terminal or an encoder could fail."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _RAW_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(document: Any) -> None:
    """Print a document as JSON on stdout, coloured on a terminal."""
    write_json(to_json(document) + "\n")


def write_json(text: str) -> None:
    """Write a piece of JSON to stdout, coloured on a terminal."""
    if on_terminal():
        out.print(JSONHighlighter()(Text(text)), soft_wrap=True, end="")
    else:
        write(text)


def write(text: str) -> None:
    """Write text to stdout as it is."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        _end_for_lack_of_readers()


def flush() -> None:
    """Make sure that all that was printed is written, before Python does it when nobody can handle its failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_for_lack_of_readers()
    except OSError as error:
        end_for(error)


def end_for(error: OSError) -> NoReturn:
    """End, since what was to be printed can't be."""
    _discard_what_is_left()
    print_failure("error", f"{error.strerror}: standard output")
    raise SystemExit(1) from error


def add_row(table: Table, *cells: object | tuple[object, str]) -> None:
    """Add a row of text, or of pairs of text and style, to a table."""
    pairs = (cell if isinstance(cell, tuple) else (cell, "") for cell in cells)
    table.add_row(*(Text(printable(text), style) for text, style in pairs))


def print_table(table: Table) -> None:
    """Print a table. In a file or a pipe it has its full width."""
    console = out if on_terminal() else PipeConsole(width=1_000_000, emoji=False)
    console.print(table)


def print_markdown(text: str) -> None:
    """Print Markdown, laid out on a terminal, and as it is elsewhere."""
    lines = text.splitlines()
    if on_terminal():
        # A link may have any name, and the parser decodes some of them.
        made = out.render(Markdown("\n".join(map(printable, lines)), hyperlinks=False))
        parts = ((segment.text, segment.style or "") for segment in made if not segment.control)
        shown = Text.assemble(*(("\n".join(map(printable, part.split("\n"))), style) for part, style in parts))
        out.print(shown, highlight=False, soft_wrap=True, end="")
    else:
        for line in lines:
            say(line)


def on_terminal() -> bool:
    """Whether somebody looks at stdout."""
    # Don't ask rich: it can be told to colour even what a program reads.
    return sys.stdout is not None and sys.stdout.isatty()


def into_file() -> bool:
    """Whether stdout is a file, so that a progress bar on stderr can't be in its way."""
    try:
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):
        return False


def _end_for_lack_of_readers() -> NoReturn:
    _discard_what_is_left()
    raise SystemExit(BROKEN_PIPE)


def _discard_what_is_left() -> None:
    """Python writes what is left in its buffers when it ends; a failure then is a message of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
