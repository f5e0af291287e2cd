"""rich's console for foreign text; apart from `core.text`, since not everything that prints needs rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from hpclbfl.core.text import printable

UNBOUNDED = 100_000
"""Width without a terminal: lines are as long as they need to be, so that line-based tools work."""


class PlainConsole(Console):
    """Escapes control characters in every string that it prints, those in cells and titles of tables included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        # rich takes COLUMNS, where it is set, for the width; else 80 columns for what is no terminal.
        if not self._width:
            self._width = None if self.is_terminal else UNBOUNDED

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as it is, in one line."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})


def make_console(**options: Any) -> Console:
    """Return a rich console that prints strings literally: one line, no markup, no emoji codes, no highlighting.

    For several lines or styles, pass a rich `Text`. The console is as wide as the terminal, or as the environment's
    COLUMNS says; without either, as wide as it needs.
    """
    return PlainConsole(**options)
