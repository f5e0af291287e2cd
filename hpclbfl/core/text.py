"""Text for a terminal: the only way in which names, configs and errors of strangers reach it.

Control characters would move the cursor, change colours or forge lines, rich's markup would be taken as such, and a
character that the stream's encoding lacks would end the program.
"""

from __future__ import annotations

import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

MAX_SHOWN = 200
"""Characters of a value in a message."""
MAX_LINE = 4000
"""Characters of a line."""


def printable(value: object, limit: int | None = MAX_LINE) -> str:
    """Return a text in one line, with control characters, line ends and lone surrogates escaped.

    Args:
        value: any object; what `str` makes of it counts.
        limit: characters that are kept; a longer text loses its middle and says so.
    """
    text = str(value)
    if limit is not None and len(text) > limit:
        half = max(1, (limit - 5) // 2)
        text = f"{text[:half]} ... {text[-half:]}"
    # isprintable is false for control and format characters (right-to-left marks among them), and for surrogates.
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)


def shown(value: object) -> str:
    """Return a value as an error message shows it: its repr, printable and short."""
    return printable(repr(value), MAX_SHOWN)


def say(line: object, stream: IO[str] | None = None) -> None:
    """Write one line of text to a stream (standard error by default), whatever the text and the stream's encoding."""
    stream = sys.stderr if stream is None else stream
    text = printable(line)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def cell(value: object, style: str = "") -> Text:
    """Return a text as a cell of a rich table: printable, and never taken as markup."""
    return Text(printable(value), style=style)


def make_console(**options: Any) -> Console:
    """Return a rich console that takes text as it is: no markup, no emoji codes, no highlighting."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def make_streams_safe() -> None:
    """Let standard output and error escape what their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
