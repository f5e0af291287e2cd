"""Foreign text on a terminal: one line, no control characters, in any encoding."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from hpclbfl.core.console import make_console
from hpclbfl.core.text import MAX_LINE, cell, printable, say, say_traceback, shown


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mred\nb\tc\x07") == r"a\x1b[31mred\nb\tc\x07"
    assert printable("grün [r/] \u202edne") == r"grün [r/] \u202edne"
    assert printable("\udcff") == r"\udcff"


def test_long_text_loses_its_middle():
    assert printable("a" * 50 + "b" * 50, 25) == "a" * 10 + " ... " + "b" * 10
    assert len(shown("x" * 100_000)) == 199


@given(st.text())
def test_all_text_becomes_one_printable_line(text):
    line = printable(text, None)
    assert line.isprintable()


@given(st.text(max_size=50), st.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_any_line_reaches_any_stream(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    say(text, stream)
    assert raw.getvalue().count(b"\n") == 1


def test_a_console_escapes_all_strings_of_a_table():
    hostile = "a\x1b[2J\n[/red]"
    table = Table(title=hostile, caption=hostile, box=None)
    table.add_column(hostile)
    table.add_row(hostile)
    console = make_console(file=io.StringIO(), width=80)
    console.print(table)
    console.print(hostile)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert lines == [r"a\x1b[2J\n[/red]"] * 5


def test_what_is_escaped_is_cut_too():
    assert len(printable("\x1b" * 10_000)) <= MAX_LINE
    assert len(printable("\x1b" * 10_000, None)) == 40_000


def test_a_traceback_is_lines_of_text(capsys):
    try:
        raise ValueError("a\x1b[31m\nhpclbfl: error: forged")
    except ValueError as error:
        say_traceback(error)
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("\nValueError: a\\x1b[31m\\nhpclbfl: error: forged\n")
    assert "\x1b" not in said


def test_markup_is_text():
    console = make_console(file=io.StringIO(), width=80)
    console.print(cell("r[/red] :smile:"))
    console.print("x[/y]")
    assert console.file.getvalue() == "r[/red] :smile:\nx[/y]\n"
