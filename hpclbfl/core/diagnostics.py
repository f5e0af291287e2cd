"""Diagnostics: what a command tells besides its results, through `logging` under the logger "hpclbfl".

The command line installs one handler, `on_terminal`, which writes to standard error. A script that uses the package
gets nothing printed: records go to the handlers that it has set up itself, if any. Every message is made `printable`
before it becomes a record, so that no handler meets control characters. A message's title says what it belongs to: the
program, or a run. The line that a failed command ends with is no diagnostic and is always printed
(`core.text.say_error`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_rank
from hpclbfl.core.text import printable, say, shown

Level = Literal["error", "warning", "info", "debug"]
LEVELS: dict[Level, int] = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
"""The fewest lines first."""
DEFAULT: Level = "info"
LOG_LEVEL = "HPCLBFL_LOG_LEVEL"
"""Environment variable: the level of a command without --quiet or --verbose, and of all processes that it starts."""
PROGRAM = "hpclbfl"

_root = logging.getLogger(PROGRAM)


class Diagnostics:
    """What one module has to tell.

    Args:
        name: of the module, `__name__`.
        title: begins each line on the terminal, before a colon; empty: nothing does.
    """

    def __init__(self, name: str, title: str = PROGRAM) -> None:
        # A module that is run by itself is called `__main__`.
        self._logger = logging.getLogger(name if name.startswith(f"{PROGRAM}.") else PROGRAM)
        self._title = printable(title)

    def debug(self, line: object) -> None:
        """Tell a detail, for those who ask: times, sizes, what was read."""
        self._log(logging.DEBUG, line)

    def info(self, line: object) -> None:
        """Tell how far something is, or what is to be known."""
        self._log(logging.INFO, line)

    def warning(self, line: object) -> None:
        """Tell what may make the results worth less than they seem."""
        self._log(logging.WARNING, line)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Tell, as a detail, how long the part of a program took that ran meanwhile."""
        begin = time.perf_counter()
        yield
        self.debug(f"{what}: {time.perf_counter() - begin:.2f} s")

    def _log(self, level: int, line: object) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, printable(line), extra={"title": self._title}, stacklevel=3)


class Terminal(logging.Handler):
    """Writes each record as one line to standard error, as it is at that moment, or above a progress bar.

    A stream that cannot be written raises, as it does for all other text.
    """

    def __init__(self, level: Level) -> None:
        super().__init__(_threshold(level))
        self._bar: tuple[str, Callable[[str], object]] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        line, title = record.getMessage(), getattr(record, "title", PROGRAM)
        if self._bar is not None and title == self._bar[0]:
            # The bar shows the title itself.
            title = ""
        text = f"{title}: {line}" if title else line
        if self._bar is not None:
            self._bar[1](text)
        else:
            say(text)

    @contextmanager
    def above(self, title: str, write: Callable[[str], object]) -> Iterator[None]:
        """While entered, have lines written by a bar's console, which moves the bar down."""
        before, self._bar = self._bar, (printable(title), write)
        try:
            yield
        finally:
            self._bar = before


def terminal() -> Terminal | None:
    """The handler that is installed; None: nobody wants diagnostics on a terminal."""
    return next((handler for handler in _root.handlers if isinstance(handler, Terminal)), None)


def shows(level: Level) -> bool:
    """Whether records of a level reach the terminal."""
    handler = terminal()
    return handler is not None and handler.level <= LEVELS[level]


def level_from(environ: Mapping[str, str]) -> Level:
    """The level that the environment names.

    Raises:
        ConfigError: there is none of that name.
    """
    named = environ.get(LOG_LEVEL, "") or DEFAULT
    for level in LEVELS:
        if level == named:
            return level
    raise ConfigError(f"{LOG_LEVEL}: {shown(named)} is no level: {', '.join(LEVELS)}")


@contextmanager
def on_terminal(level: Level | None = None) -> Iterator[None]:
    """While entered, write diagnostics to standard error; processes that are started meanwhile take over the level.

    Args:
        level: the lowest that is written; None: the environment's, see `level_from`.

    Raises:
        ConfigError: the environment names no level.
    """
    handler = Terminal(level_from(os.environ) if level is None else level)
    outer, before, propagated, named = terminal(), _root.level, _root.propagate, os.environ.get(LOG_LEVEL)
    if outer is not None:
        _root.removeHandler(outer)
    _root.addHandler(handler)
    # Handlers of the root logger, such as another package's, would print each line again.
    _root.propagate = False
    try:
        _root.setLevel(handler.level)
        if level is not None:
            os.environ[LOG_LEVEL] = level
        yield
    finally:
        _root.removeHandler(handler)
        if outer is not None:
            _root.addHandler(outer)
        _root.setLevel(before)
        _root.propagate = propagated
        if named is None:
            os.environ.pop(LOG_LEVEL, None)
        else:
            os.environ[LOG_LEVEL] = named


def set_level(level: Level) -> None:
    """Change what is written to the terminal until `on_terminal` is left, also by processes started from now on."""
    handler = terminal()
    if handler is not None:
        handler.setLevel(_threshold(level))
        _root.setLevel(handler.level)
        os.environ[LOG_LEVEL] = level


def keep_silent(package: str) -> None:
    """Have Python print no records of another package where no handler takes them."""
    logging.getLogger(package).addHandler(logging.NullHandler())


def _threshold(level: Level) -> int:
    # All ranks have the same details to tell: the first one does.
    return max(LEVELS[level], logging.INFO) if launched_rank(os.environ) else LEVELS[level]


keep_silent(PROGRAM)
