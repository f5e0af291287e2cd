"""Text for a terminal: whatever a line, a table or a bar holds, one line of what the stream can take."""

import io
import re

from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table

from hpclbfl.analysis.show.markup import TextTable, to_html, to_latex, to_markdown, to_rich
from hpclbfl.core.console import make_console
from hpclbfl.core.text import MAX_LINE, cell, printable, say, shown
from tests.fuzz.budget import fuzz

_SIGNS = st.characters(exclude_categories=()) | st.sampled_from(
    "\x1b\n\r\t\x07\x9b[]:|&<>`*_\\{}$%\u202e\u2028\ufeff\0"
)
_TEXTS = st.text(_SIGNS, max_size=30) | st.sampled_from(
    ["[/red]", "[bold]", ":smile:", "\x1b[2J", "x" * 10_000, "\x9b" * 9000, "&lt;", "![x](y)", "</script>"]
)
_NOT_PRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


def _shown_by(render) -> list[str]:
    """Lines that a console writes to a stream of any encoding."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace", write_through=True)
    render(make_console(file=stream, width=500))
    return raw.getvalue().decode("ascii").splitlines()


def test_text():
    def check(texts: list[str]) -> None:
        first = texts[0]
        line = printable(first)
        assert line.isprintable()
        assert len(line) <= MAX_LINE
        assert len(shown(first)) <= 200
        for encoding in ("ascii", "latin-1", "utf-8"):
            raw = io.BytesIO()
            stream = io.TextIOWrapper(raw, encoding=encoding)
            say(first, stream)
            assert raw.getvalue().count(b"\n") == 1
            assert _NOT_PRINTABLE.search(raw.getvalue().decode(encoding)) is None

        assert len(_shown_by(lambda console: console.print(first, soft_wrap=True))) == 1
        assert len(_shown_by(lambda console: console.print(cell(first), soft_wrap=True))) == 1
        # By whichever way a text gets into a table.
        table = Table(title=first[:50], caption=first[:50])
        table.add_column(first[:50], no_wrap=True)
        table.add_column(cell(first[:50]), no_wrap=True)
        table.add_row(first[:50], cell(first[:50]))
        lines = _shown_by(lambda console: console.print(table))
        assert all(_NOT_PRINTABLE.search(line) is None for line in lines)
        bar = io.StringIO()
        column = TextColumn("{task.description}", markup=False)
        with Progress(column, console=make_console(file=bar, width=500, force_terminal=False)) as progress:
            progress.add_task(printable(first))
            progress.console.print(first)
        assert _NOT_PRINTABLE.search(bar.getvalue()) is None

        forms = TextTable(first, ("a", first), [(first, text) for text in texts], frozenset({"a"}), (first,))
        _shown_by(lambda console: console.print(to_rich(forms)))
        for text in (to_markdown(forms), to_latex(forms), to_html(forms, "x")):
            assert _NOT_PRINTABLE.search(text) is None
        # As many lines as there are rows, whatever these hold; and no element but those of the table.
        assert len(to_markdown(forms).splitlines()) == 6 + len(texts)
        assert len(to_latex(forms).splitlines()) == 10 + len(texts)
        elements = {"div", "table", "caption", "thead", "tr", "th", "tbody", "td", "p"}
        assert set(re.findall(r"</?(\w+)", to_html(forms, "x"))) <= elements

    assert fuzz(st.lists(_TEXTS, min_size=1, max_size=3), check, at_once=20) > 0
