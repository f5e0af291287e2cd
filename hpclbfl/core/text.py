"""Text for a terminal: the only way in which names, configs and errors of strangers reach it.

Control characters would move the cursor, change colours or forge lines, rich's markup would be taken as such, and a
character that the stream's encoding lacks would end the program.
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
    """Return a text in one line, with control characters, line ends and lone surrogates escaped.

    Args:
        value: any object; what `str` makes of it counts.
        limit: characters that are kept; a longer text loses its middle and says so.
    """
    # Escapes are longer than what they stand for.
    text = "".join(sign if sign.isprintable() else _escaped(sign) for sign in _cut(str(value), limit))
    return _cut(text, limit)


def shown(value: object) -> str:
    """Return a value as an error message shows it: its repr, printable and short."""
    return printable(repr(value), MAX_SHOWN)


def say(line: object, stream: IO[str] | None = None, limit: int | None = MAX_LINE) -> None:
    """Write one line of text to a stream (standard error by default), whatever the text and the stream's encoding.

    Args:
        limit: see `printable`; None for what is to be copied, such as a command.
    """
    stream = sys.stderr if stream is None else stream
    text = printable(line, limit)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def say_error(line: object) -> None:
    """Write the line that a failed command ends with to standard error, whatever level of diagnostics is shown."""
    say(f"hpclbfl: error: {line}")


def say_traceback(error: BaseException) -> None:
    """Write an exception's traceback to standard error as `say` does; a message is one line, whatever it holds."""
    for block in traceback.format_exception(error):
        # Places in the source, and what joins one exception to the next, have lines of their own.
        for line in block.splitlines() if block.startswith((" ", "\n")) else [block.rstrip("\n")]:
            say(line)


def cell(value: object, style: str = "") -> Text:
    """Return a text as a cell of a rich table: printable, and never taken as markup."""
    from rich.text import Text

    return Text(printable(value), style=style)


def make_streams_safe() -> None:
    """Let all that a process writes to its standard streams be text that a terminal can take.

    Characters that a stream's encoding lacks are escaped instead of raising; warnings and the tracebacks of errors that
    nobody caught, which quote names and values, pass through `say`.
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
    # isprintable is false for control and format characters (right-to-left marks among them), and for surrogates.
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
