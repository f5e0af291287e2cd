"""A table whose numbers are never folded or cut, whatever the width of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from hpclbfl.core.text import cell

_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""For streams that cannot encode lines; rich's own substitute has borders."""
LEAST_TEXT = 12
"""Minimum width of a column of texts, in characters."""


class DataTable(Table):
    """A rich table of numbers and texts, given as strings or `Text`.

    Cells that are right-justified or `no_wrap` are numbers or words and are neither folded nor cut. Other cells are
    folded (with `overflow="ellipsis"`, cut) down to LEAST_TEXT characters. If that is not enough, every row becomes a
    record: each cell on a line of its own after the name of its column.

    The name of a column of numbers may be folded if the column has `overflow="fold"`. Title and caption are
    left-justified and may be wider than the table.
    """

    def __init__(self, title: str | Text = "", caption: str | Text = "", **options: Any) -> None:
        super().__init__(**{"box": SIMPLE_HEAD, "pad_edge": False, **options})
        self._above, self._below = _literal(title), _literal(caption)

    def add_column(self, header: str | Text = "", **options: Any) -> None:  # type: ignore[override]
        """Add a column, with rich's options; see the class."""
        is_text = options.get("justify") != "right" and not options.get("no_wrap")
        super().add_column(_literal(header), **{"overflow": "fold" if is_text else "crop", **options})

    def add_row(self, *cells: str | Text, **options: Any) -> None:  # type: ignore[override]
        """Add a row, with rich's options."""
        super().add_row(*map(_literal, cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, table or records, caption."""
        yield from _annotation(self._above, "table.title")
        widths = self._widths(options.max_width)
        if widths is None:
            yield from self._records(options.max_width)
        else:
            if options.ascii_only and self.box is SIMPLE_HEAD:
                self.box = _ASCII_HEAD
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from _without_ends(super().__rich_console__(console, options))
        yield from _annotation(self._below, "table.caption")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """It uses the full width that is available."""
        return Measurement(1, options.max_width)

    def _widths(self, width: int) -> list[int] | None:
        """Widths of the columns; None if the numbers do not fit."""
        heads = [_width(column.header) for column in self.columns]
        cells = [max([column.min_width or 0, *map(_width, column.cells)]) for column in self.columns]
        least = [_least(*known) for known in zip(self.columns, heads, cells, strict=True)]
        most = [max(1, *pair) for pair in zip(heads, cells, strict=True)]
        padding = sum(self._get_padding_width(place) for place in range(len(self.columns)))
        room = width - self._extra_width - padding
        return _shared(least, most, room) if sum(least) <= room else None

    def _records(self, width: int) -> RenderResult:
        names = [" ".join(str(column.header).split()) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            for name, text in zip(names, row, strict=True):
                if isinstance(text, Text) and text.plain:
                    # A number that would be folded after the name gets a line of its own.
                    gap = "\n" if _width(text) <= width < _width(f"{name}: ") + _width(text) else " "
                    yield Text.assemble(f"{name}:{gap}" if name else "", text, overflow="fold")
            yield Segment.line()


def _literal(text: str | Text) -> Text:
    return text if isinstance(text, Text) else cell(text)


def _annotation(text: Text, style: str) -> Iterator[Text]:
    if text.plain:
        yield Text(style=style, overflow="fold").append_text(text)


def _width(text: RenderableType) -> int:
    return max((Text(line).cell_len for line in str(text).splitlines()), default=0)


def _least(column: Column, head: int, cells: int) -> int:
    if column.overflow == "ellipsis" or (column.justify != "right" and not column.no_wrap):
        return max(1, min(LEAST_TEXT, max(head, cells)))
    return max(1, cells, 1 if column.overflow == "fold" else head)


def _shared(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Widths that sum to at most `room`; columns wider than their minimum are equally wide."""
    if sum(most) <= room:
        return list(most)
    widths = list(least)
    for _ in range(room - sum(least)):
        narrowest = min((width, place) for place, width in enumerate(widths) if width < most[place])[1]
        widths[narrowest] += 1
    return widths


def _without_ends(rendered: RenderResult) -> Iterator[Segment]:
    """The lines without trailing blanks."""
    for line in Segment.split_lines(segment for segment in rendered if isinstance(segment, Segment)):
        while line and not line[-1].text.strip():
            line.pop()
        if line:
            line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
        yield from line
        yield Segment.line()
