"""The rich console that `core.text.make_console` gives: a module of its own, as not all that prints needs rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from hpclbfl.core.text import printable


class PlainConsole(Console):
    """Escapes control characters in every string that it prints, those in cells and titles of tables included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as it is, in one line."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})
