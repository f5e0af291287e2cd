"""Tables: numbers are never folded, texts are; without a terminal the width is unbounded."""

from __future__ import annotations

import io
import re

import pytest
from rich.text import Text

from hpclbfl.core.console import make_console
from hpclbfl.core.table import LEAST_TEXT, DataTable

LABELS = ("a" * 200, "宽" * 100, ", ".join(["b=32, X=4, dirichlet 0.1"] * 8), "[bold]short[/bold]")
NUMBERS = ("98.9 [97.1, 99.9]", "1,234,567,890", "−0.54 [−99.97, +25.06]")


def table(rows: int = 4) -> DataTable:
    found = DataTable(title="Runs in /some/where", caption="in brackets: intervals")
    found.add_column("arm")
    found.add_column(Text("final top-1\n(%)"), justify="right")
    found.add_column("samples", justify="right")
    found.add_column("state", no_wrap=True)
    found.add_column("difference", justify="right")
    found.add_column("run")
    for place in range(rows):
        found.add_row(LABELS[place], NUMBERS[0], NUMBERS[1], "running", NUMBERS[2], LABELS[place])
    return found


def printed(width: int | None, shown: DataTable | None = None) -> str:
    console = make_console(file=io.StringIO(), width=width)
    console.print(shown or table())
    return console.file.getvalue()


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 120, 200, 500])
def test_numbers_neither_fold_nor_vanish_at_any_width(width: int) -> None:
    text = printed(width)
    for number in (*NUMBERS, "running"):
        assert text.count(number) == len(LABELS), number
    assert "…" not in text
    assert all(Text(line).cell_len <= max(width, len("difference: ") + len(NUMBERS[2])) for line in text.splitlines())
    # Texts fold, and lose no character.
    assert [text.count(sign) for sign in "宽"] == [200]
    assert text.count("a" * 8) > 0 and re.sub(r"[^a]", "", text.split("宽")[0]).count("a") >= 400


def test_without_a_terminal_a_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(None).splitlines()
    for label in LABELS:
        (line,) = (line for line in lines if label in line)
        assert all(number in line for number in NUMBERS) and line.count(label) == 2
    assert all(line == line.rstrip() for line in lines)
    monkeypatch.setenv("COLUMNS", "90")
    assert max(Text(line).cell_len for line in printed(None).splitlines()) == 90
    # No width at all.
    monkeypatch.setenv("COLUMNS", "0")
    assert printed(None).splitlines() == lines


def test_a_narrow_terminal_gets_records() -> None:
    found = DataTable(title="Errors")
    found.add_column("")
    found.add_column(Text("median\n(%)"), justify="right")
    found.add_row("t_c: forward, backward", "12,345,678")
    assert printed(LEAST_TEXT + 11, found) == "Errors\nt_c: forward, backward\nmedian (%): 12,345,678\n\n"


def test_names_of_columns_fold_where_they_may() -> None:
    found = DataTable()
    found.add_column("client", justify="right")
    for name in ("aeroplane" * 20, "automobile"):
        found.add_column(name, justify="right", overflow="fold")
    found.add_row("0", "123456", "7")
    text = printed(30, found)
    assert "123456" in text and all(len(line) <= 30 for line in text.splitlines())
    assert text.splitlines()[-2].split() == ["0", "123456", "7"]


def test_a_column_may_be_cut_where_a_row_is_a_line() -> None:
    found = DataTable()
    found.add_column("step", justify="right")
    found.add_column("run", no_wrap=True, overflow="ellipsis")
    found.add_row("123", "x" * 300)
    (line,) = (line for line in printed(40, found).splitlines() if "123" in line)
    assert line.endswith("…") and len(line) <= 40


def test_strings_are_literal_on_any_console() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    found = DataTable(title="[red]t[/red]")
    found.add_column("[red]x")
    found.add_row("a\x1b[31m")
    console.print(found)
    assert "[red]t[/red]" in console.file.getvalue() and "[red]x" in console.file.getvalue()
    assert "a\\x1b[31m" in console.file.getvalue() and "\x1b" not in console.file.getvalue()


def test_a_terminal_keeps_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console(file=io.StringIO(), force_terminal=True).width < 1000
