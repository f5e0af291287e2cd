"""Text for a terminal: the only way by which foreign names, configs and error messages reach it.

Control characters could move the cursor, change colours or forge lines, brackets could be taken for rich's markup, and
a character that the stream's encoding lacks would end the program.
"""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.text import Text

MAX_SHOWN = 200
"""Characters of a value in a message."""
MAX_LINE = 4000
"""Characters of a line."""


def printable(value: object, limit: int | None = MAX_LINE) -> str:
    """A text on one line, with control characters, line ends and lone surrogates escaped.

    Args:
        value: any object; converted with `str`.
        limit: largest number of characters; in a longer text the middle is replaced by dots.
    """
    # Cut again afterwards, because escapes are longer than the characters.
    text = "".join(sign if sign.isprintable() else _escaped(sign) for sign in _cut(str(value), limit))
    return _cut(text, limit)


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, printable and short."""
    return printable(repr(value), MAX_SHOWN)


def say(line: object, stream: IO[str] | None = None, limit: int | None = MAX_LINE) -> None:
    """Write one line of text to a stream (standard error by default), whatever the text and the stream's encoding.

    Args:
        line: the text.
        stream: where to; None: standard error.
        limit: see `printable`; None for text that the user is to copy, such as a command.
    """
    stream = sys.stderr if stream is None else stream
    text = printable(line, limit)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def say_error(line: object) -> None:
    """Write the line with which a failed command ends to standard error, whatever the level of diagnostics."""
    say(f"hpclbfl: error: {line}")


def say_traceback(error: BaseException) -> None:
    """Write an exception's traceback to standard error as `say` does; the message stays on one line."""
    for block in traceback.format_exception(error):
        # Source locations and the text between chained exceptions keep their line breaks.
        for line in block.splitlines() if block.startswith((" ", "\n")) else [block.rstrip("\n")]:
            say(line)


def cell(value: object, style: str = "") -> Text:
    """A text as a cell of a rich table: printable, and never taken for markup."""
    from rich.text import Text

    return Text(printable(value), style=style)


def make_streams_safe() -> None:
    """Make everything that a process writes to its standard streams safe for a terminal.

    Characters that a stream's encoding lacks are escaped instead of raising. Warnings and tracebacks of uncaught
    errors, which quote names and values, pass through `say`.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    sys.excepthook = _say_uncaught
    threading.excepthook = _say_thread_uncaught
    warnings.showwarning = _say_warning


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say_traceback(error)


def _say_thread_uncaught(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None:
        say_traceback(uncaught.exc_value)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say(f"{filename}:{lineno}: {category.__name__}: {message}", file)


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = max(1, (limit - 5) // 2)
    return f"{text[:half]} ... {text[-half:]}"


def _escaped(sign: str) -> str:
    # isprintable is false for control and format characters (such as right-to-left marks) and for surrogates.
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
