"""Text of strangers on a terminal: one line, no control characters, whatever the encoding."""

import io

from hypothesis import given
from hypothesis import strategies as st

from hpclbfl.core.text import cell, make_console, printable, say, shown


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


def test_markup_is_text():
    console = make_console(file=io.StringIO(), width=80)
    console.print(cell("r[/red] :smile:"))
    console.print("x[/y]")
    assert console.file.getvalue() == "r[/red] :smile:\nx[/y]\n"
