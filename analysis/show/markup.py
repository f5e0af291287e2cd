"""A table of texts, and how it is rendered: for the terminal, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape as html_escape

from rich.text import Text

from hpclbfl.core.table import DataTable
from hpclbfl.core.text import printable


@dataclass(frozen=True)
class TextTable:
    """Cells as they are shown. Columns named in `left` are texts; the others are numbers and aligned right.

    Every text becomes one line without control characters.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    marks: list[dict[str, str]] = field(default_factory=list)
    """By row, `data-` attributes of its HTML element, for the filter of the page."""

    def __post_init__(self) -> None:
        for name, texts in (("head", self.head), ("notes", self.notes)):
            object.__setattr__(self, name, tuple(map(printable, texts)))
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "rows", [tuple(map(printable, row)) for row in self.rows])
        object.__setattr__(self, "left", frozenset(map(printable, self.left)))


def signed(value: float, digits: int) -> str:
    """A difference with its sign, `+1.2`; with a typographic minus, and zero without a sign."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def to_rich(table: TextTable) -> DataTable:
    """For a terminal: texts may wrap, units are below the names."""
    shown = DataTable(title=table.title)
    for name in table.head:
        shown.add_column(Text(name.replace(" (", "\n(")), justify="left" if name in table.left else "right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def to_markdown(table: TextTable) -> str:
    """A pipe table under a bold title, its notes below; of a table without rows only the first note."""
    if not table.rows:
        return f"{_markdown(table.notes[0])}\n"
    lines = [f"**{_markdown(table.title)}**", ""]
    lines.append("| " + " | ".join(_markdown(name) for name in table.head) + " |")
    lines.append("|" + "|".join("---" if name in table.left else "---:" for name in table.head) + "|")
    lines += ["| " + " | ".join(_markdown(cell) for cell in row) + " |" for row in table.rows]
    lines += ["", *(_markdown(note) for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def to_latex(table: TextTable) -> str:
    r"""A `table` float in the style of booktabs (`\usepackage{booktabs}`), with title and notes as its caption.

    Of a table without rows only the first note.
    """
    if not table.rows:
        return f"{_latex(table.notes[0])}\n"
    columns = "".join("l" if name in table.left else "r" for name in table.head)
    caption = " ".join(_latex(text) for text in (f"{table.title}.", *table.notes))
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{caption}}}", rf"  \begin{{tabular}}{{{columns}}}"]
    lines += [r"    \toprule", "    " + " & ".join(_latex(name) for name in table.head) + r" \\", r"    \midrule"]
    lines += ["    " + " & ".join(_latex(cell) for cell in row) + r" \\" for row in table.rows]
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_html(table: TextTable, name: str) -> str:
    """A `table` with a caption and row headers; `name` is its id."""
    kinds = ["text" if column in table.left else "number" for column in table.head]
    head = "".join(
        f'<th scope="col" class="{kind}">{html_escape(column)}</th>'
        for column, kind in zip(table.head, kinds, strict=True)
    )
    body = []
    for place, row in enumerate(table.rows):
        marks = table.marks[place] if table.marks else {}
        attributes = "".join(f' data-{key}="{html_escape(value)}"' for key, value in marks.items())
        first = f'<th scope="row" class="{kinds[0]}">{html_escape(row[0])}</th>'
        rest = "".join(
            f'<td class="{kind}">{html_escape(cell)}</td>' for cell, kind in zip(row[1:], kinds[1:], strict=True)
        )
        body.append(f"<tr{attributes}>{first}{rest}</tr>")
    notes = "".join(f'<p class="note">{html_escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll"><table id="{html_escape(name)}"><caption>{html_escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(body) + f"\n</tbody></table></div>{notes}"
    )


def _markdown(text: str) -> str:
    # Also, no name may become a link, a picture, an entity or an HTML element.
    return re.sub(r"([\\|*_<`~\[\]]|&(?=#?\w))", r"\\\1", text)


_LATEX = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "²": r"\textsuperscript{2}",
    "−": "$-$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
