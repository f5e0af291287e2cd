"""rich's console for foreign text; separate from `core.text`, because not every command needs rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from hpclbfl.core.text import printable

UNBOUNDED = 100_000
"""Width without a terminal: lines are not folded, for tools that work by lines."""


class PlainConsole(Console):
    """Escapes control characters in every string that it prints, including cells and titles of tables."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        # rich takes the width from COLUMNS if it is set; otherwise it assumes 80 columns without a terminal.
        if not self._width:
            self._width = None if self.is_terminal else UNBOUNDED

    def render_str(self, text: str, **options: Any) -> Text:
        """A string on one line, without markup."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})


def make_console(**options: Any) -> Console:
    """A rich console that prints strings literally: on one line, without markup, emoji codes and highlighting.

    For several lines or styles, pass a rich `Text`. The console has the width of the terminal or of the environment
    variable COLUMNS; without either, its width is unbounded.
    """
    return PlainConsole(**options)
